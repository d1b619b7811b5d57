"""Builds the bundled miniature benchmark and models from a seed.

Nothing in :mod:`manu_utils` outside this folder imports it; it needs the ``[mini]`` extra (Faker,
DiceBear, resvg).
"""
