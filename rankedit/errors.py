"""Every error and warning of the library.

All errors derive from `RankeditError`, so `except rankedit.RankeditError` catches whatever this
library refuses. Messages say which call, what was expected, what came, and what to do.
"""

from __future__ import annotations


class RankeditError(Exception):
    """Base class of every error that the library raises."""


class ShapeError(RankeditError, ValueError):
    """A tensor has the wrong shape, dtype or content for the call it was given to."""


class SolveError(RankeditError, ValueError):
    """An edit has no solution, or none that can be computed reliably."""


class StatisticsError(RankeditError, ValueError):
    """Statistics are missing, unusable or belong to something else."""


class ProjectionError(RankeditError, LookupError):
    """A projection was not found, or is not a linear map that can be edited."""


class AttachError(RankeditError, RuntimeError):
    """An edit cannot be installed on, or removed from, a model."""


class EditFileError(RankeditError, ValueError):
    """A file is damaged, hostile, of another version, or made for another model."""


class ConformanceError(RankeditError, AssertionError):
    """A solver or an edit lacks a property that it must have; see `rankedit.testing`."""


class RankeditWarning(UserWarning):
    """Something worked but deserves attention: the message gives the figure."""
