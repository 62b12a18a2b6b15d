"""`python -m capjax` is the program `capjax`."""

from capjax.cli import program

if __name__ == "__main__":
    program()
