from flexq_ft._native import kernels as kernels
from flexq_ft._native import ops as ops

__version__: str
ERROR_EXIT_CODES: dict[str, int]
