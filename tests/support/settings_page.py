"""Makes docs/settings.md from the declarations. ``python -m tests.support.settings_page`` writes the page."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.settings_table import GROUPS, SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
_OPENING = """# Settings

Every setting is an environment variable. An empty variable counts as unset. `spendstream config` prints each
setting with its value and where the value came from, and lists every fault with exit code 2. A variable that
resembles a setting and is none, such as `FLUSH_INTERVALL`, is warned of.

A secret may stand in a file instead. `DATABASE_URL_FILE=/run/secrets/database_url` names the file, and the
text in the file, without the newline at its end, is the value of `DATABASE_URL`. The others are
{files}.
If both variables are set, or the file cannot be read or is empty, the process says so and ends with exit
code 2. Files are read once, at the start.

Durations are written as `500ms`, `10s`, `5m`, `24h` or `7d`, sizes as `64KiB`, `512MiB` or `20GiB`.

This page is made from the program's own table: `python -m tests.support.settings_page`.
"""


def text() -> str:
    """The page as it must be."""
    *most, last = [f"`{setting.file_name}`" for setting in SETTINGS if setting.file_name][1:]
    parts = [_OPENING.format(files=f"{', '.join(most)} and {last}")]
    for group in GROUPS:
        lines = [f"\n## {group.title}\n", "| setting | default | for |", "| --- | --- | --- |"]
        for setting in group.settings:
            default = "" if setting.default is None else f"`{setting.default}`"
            lines.append(f"| `{setting.name}` | {default} | {setting.help} |")
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(text())
