"""Rendered pictures of coloured shapes with five captions each, deterministic, without a download.

`layout` draws at random what a picture shows, `rendering` paints it, `captions` describes it, `claims` tells whether a
caption is right, and `builder` makes a dataset of it all.
"""
