"""``report``: results of goodput searches as one self-contained HTML page, and its pictures as PNG.

Nothing is measured here: every number comes from result files, so that a page can be made anew
from old results, on any machine.
"""
