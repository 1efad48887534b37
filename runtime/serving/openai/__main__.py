"""`python -m quasar.runtime.serving.openai`"""

from quasar.runtime.serving.openai.cli import main

raise SystemExit(main())
