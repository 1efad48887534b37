"""`python -m quasar.runtime.inspect`."""

from quasar.runtime.inspect.cli import main

raise SystemExit(main())
