"""The journey of the files: split, train apart, merge, compare, next round.

One file per step; each is a function that the command line, Python and a notebook share.
"""
