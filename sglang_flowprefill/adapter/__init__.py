"""The only part of this package that imports sglang.

``compat.py`` lists every upstream symbol that is touched here; if SGLang renames one, that row
and the file that it names are what changes.
"""
