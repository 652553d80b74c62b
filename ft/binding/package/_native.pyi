__version__: str
ERROR_EXIT_CODES: dict[str, int]
