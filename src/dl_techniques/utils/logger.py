"""The package's logger."""

import logging

logger = logging.getLogger("dl_techniques")
