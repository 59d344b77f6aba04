"""Texts of refusals to a caller that is confined to its points, over both protocols."""

from __future__ import annotations

from typing import Final

NOT_CONFINED: Final = "This operation cannot be confined to a tenant"
NOT_OF_A_BATCH: Final = "An operation of this batch cannot be confined to a tenant"
LOOKS_UP: Final = "{} would read points of others: it cannot be confined to a tenant"
UNUSUAL: Final = "A query of this form cannot be confined to a tenant"
MARKED: Final = "The payload's {} is not yours to choose"
MARKS_EXCLUDE: Final = "No point can be yours: your conditions on {} exclude each other"
SEVERAL_MARKS: Final = "A payload that one of several values marks cannot be cleared: overwrite it with the one to keep"
SET: Final = "The payload's {} is not yours to set"
KEPT: Final = "The payload that marks a tenant's points cannot be deleted, nor a key of unusual form"
BELOW_A_KEY: Final = "A payload below a key that marks a tenant's points, or of unusual form, cannot be set"
TOO_MANY: Final = "Too many queries or operations at once: each gets {} values of your role's filter, and there are {}"
