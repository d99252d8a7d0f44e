"""The looks of the report's page: one style sheet, light and dark, from a phone to a wide screen."""

from codegen2_jax.reporting.drawing import css_variables

_RULES = """
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
.frame { max-width: 1360px; margin: 0 auto; padding: 0 20px 64px; }
header { padding: 40px 0 8px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 0 0 12px; letter-spacing: -0.005em; }
h3 { font-size: 1.02rem; margin: 28px 0 10px; }
p { margin: 0 0 12px; max-width: 72ch; }
a { color: var(--link); text-underline-offset: 2px; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.lead { color: var(--muted); }
.facts { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 18px 0 0; }
.facts div { min-width: 0; }
.facts dt { color: var(--muted); font-size: 0.8rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
nav { margin: 24px 0; padding: 14px 18px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
nav h2 { font-size: 0.8rem; font-weight: 600; color: var(--muted); margin: 0 0 6px; letter-spacing: 0; }
nav ol { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 20px; }
nav a { display: inline-block; padding: 3px 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.findings { margin: 0; padding-left: 1.2em; max-width: 76ch; }
.findings li { margin: 4px 0; }
section { padding: 28px 0 4px; scroll-margin-top: 8px; }
.card {
  min-width: 0; margin: 0 0 18px; padding: 16px 18px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px;
}
.card .name { font-weight: 600; margin: 0 0 8px; }
figcaption { color: var(--muted); font-size: 0.88rem; margin-top: 10px; max-width: 84ch; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0 18px; align-items: start; }
.scroll { overflow-x: auto; max-width: 100%; }
.tall { max-height: 420px; overflow-y: auto; }
svg.drawing { display: block; height: auto; width: 100%; stroke-linejoin: round; stroke-linecap: butt; }
svg.drawing text { font-family: inherit !important; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
th.words, td.words { text-align: left; }
thead th { white-space: normal; vertical-align: bottom; font-weight: 600; border-bottom: 1px solid var(--strong); }
thead small { display: block; font-weight: 400; color: var(--muted); font-size: 0.75rem; }
tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody tr.reference > * { color: var(--muted); }
tbody tr.reference.first > * { border-top: 1px solid var(--strong); }
tbody tr:hover > * { background: var(--hover); }
th:first-child { position: sticky; left: 0; background: var(--card); }
.tall thead th { position: sticky; top: 0; background: var(--card); z-index: 1; }
.interval { color: var(--muted); font-size: 0.85em; }
details { margin-top: 10px; font-size: 0.9rem; }
summary { cursor: pointer; color: var(--muted); width: fit-content; padding: 2px 0; }
details p { margin: 8px 0; }
footer {
  color: var(--muted); font-size: 0.85rem; border-top: 1px solid var(--line); margin-top: 32px; padding-top: 14px;
}
@media (min-width: 860px) { .pair { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (min-width: 1240px) {
  .columns { display: grid; grid-template-columns: 160px minmax(0, 1fr); gap: 0 36px; align-items: start; }
  nav { position: sticky; top: 20px; margin-top: 34px; background: none; border: 0; padding: 0; }
  nav ol { display: block; }
}
@media (max-width: 480px) {
  .frame { padding: 0 14px 48px; }
  header { padding-top: 26px; }
  h1 { font-size: 1.4rem; }
  .card { padding: 12px; }
  th, td { padding: 6px 9px; }
}
@media print { nav, summary { display: none; } .card { break-inside: avoid; } }
"""

_LIGHT = "--page: #f7f8fa; --card: #ffffff; --strong: #aab4c0; --hover: #f1f4f8; --link: #1f5fa8;"
_DARK = "--page: #12161b; --card: #191f26; --strong: #566372; --hover: #212933; --link: #84b8f4;"


def style_sheet() -> str:
    """The whole of it; colours of figures come from `drawing`."""
    light = f":root {{ color-scheme: light dark; {_LIGHT} {css_variables('light')} }}"
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} {css_variables('dark')} }} }}"
    return f"{light}\n{dark}{_RULES}"
