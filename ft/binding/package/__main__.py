"""`python -m flexq_ft` is `flexq-ft`."""

from __future__ import annotations

from flexq_ft.orchestrate.cli.main import main

if __name__ == "__main__":
    main()
