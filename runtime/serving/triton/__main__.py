"""`python -m quasar.runtime.serving.triton`."""

from quasar.runtime.serving.triton.cli import main

raise SystemExit(main())
