"""The kinds of values that settings have, with their bounds: more is a slip of the pen, or would fill any memory."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from softtok.config.messages import MOST_NAME

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MOST_NAME)]
EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
# YAML 1.1 reads 1e-5, without a dot, as text.
EXPONENTS = BeforeValidator(
    lambda value: float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
)
Number = Annotated[float, EXPONENTS]
Real = Annotated[float, Field(le=1e6), EXPONENTS]  # far beyond, fp32 overflows
# A field of one of these kinds must not have an upper bound of its own: pydantic would take no notice of it.
Whole = Annotated[int, Field(le=1_000_000_000)]
Samples = Annotated[int, Field(le=100_000)]
Size = Annotated[int, Field(le=1_000_000)]  # of a toy model
Threads = Annotated[int, Field(le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
LEAST_TEMPERATURE = 1e-9  # logits divided by less may overflow in fp32
