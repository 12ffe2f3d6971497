"""Fixtures of the kernel tests."""

from tests import compilers

gcc, gxx = compilers.gcc, compilers.gxx
