"""What the pages of samples and of evaluations look like."""

PAGE_START = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem;
  color: #222; background: #fff; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ margin: 2.5rem 0 .5rem; }}
h3 {{ font-size: .9rem; color: #555; margin: 0 0 .5rem; overflow-wrap: anywhere; }}
section {{ border-top: 1px solid #ddd; padding: 1rem 0; }}
.sample {{ display: flex; gap: 1.25rem; align-items: flex-start; flex-wrap: wrap; }}
.images {{ display: flex; flex-wrap: wrap; gap: .5rem; flex: 0 1 auto; max-width: 100%; }}
.images.many img {{ max-width: 320px; max-height: 150px; }}
.texts {{ flex: 1 1 24rem; min-width: 0; }}
img {{ max-width: 320px; max-height: 240px; border: 1px solid #ddd; background: #fff; }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .75rem; }}
.broken {{ border: 1px solid #d9a0a0; background: #fdf3f3; padding: .5rem; max-width: 18rem;
  font-size: .85rem; overflow-wrap: anywhere; }}
"""
