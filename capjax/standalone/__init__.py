"""What runs where capjax is not installed: the program that `capjax export` packs beside an exported captioner.

It needs Python, jax, numpy and pillow. Of capjax it brings the reader of images along, and nothing else.
"""
