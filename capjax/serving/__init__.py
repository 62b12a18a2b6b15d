"""Captions over HTTP: one model, a page for people, a JSON API for programs, and bounds on what is taken on."""
