"""The browser that tests marked `browser` drive; None where there is none."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
