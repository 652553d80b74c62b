from flexq_ft._native import kernels as kernels

__version__: str
ERROR_EXIT_CODES: dict[str, int]
