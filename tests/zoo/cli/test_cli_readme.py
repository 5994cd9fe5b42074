"""README and the recipes' README say what is there: commands that parse, numbers that recipes hold."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from zoo.cli.main import app, run_command
from zoo.cli.overrides import split_overrides
from zoo.runs import recipes

ROOT = Path(__file__).resolve().parents[3]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [c.strip() for block in BLOCKS for line in block.splitlines() for c in line.split("&&")]
ZOO = [c for c in COMMANDS if c.startswith("zoo ")]


def test_commands_were_found():
    assert len(ZOO) > 8
    assert "pip install -e . && zoo demo" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("command", ZOO)
def test_a_command_of_the_readme_parses(command):
    plain, _ = split_overrides(shlex.split(command, comments=True)[1:])
    group = typer.main.get_command(app)
    context = group.make_context("zoo", list(plain), resilient_parsing=True)
    name, sub, rest = group.resolve_command(context, list(plain))
    if name == "data":
        name, sub, rest = sub.resolve_command(context, rest)
    assert sub is not None
    sub.make_context(name, rest)


def test_the_result_table_is_what_the_command_prints(capsys):
    text = (ROOT / "recipes" / "README.md").read_text()
    assert run_command(["list", "--markdown"]) == 0
    table = text.partition("<!-- zoo list --markdown -->\n")[2].partition("<!-- end -->")[0]
    assert table == capsys.readouterr().out


def test_the_result_table_holds_the_recipes_numbers():
    text = (ROOT / "recipes" / "README.md").read_text()
    published = [p for p in recipes.bundled().values() if recipes.load(p)["about"]["published"]]
    assert published
    for path in published:
        about = recipes.load(path)["about"]
        key = f"{path.parent.name}/{path.stem}"
        [row] = [r for r in text.splitlines() if r.startswith((f"| `{key}`", f"| [{key}]"))]
        scores = [about["published"].get(key) for key in ("AP", "AP50")]
        assert " / ".join("-" if score is None else f"{score / 100:.3f}" for score in scores) + " " in row
        assert f"{about['params']:,}".replace(",", " ") in row
        assert about["measured"] is not None or "not yet" in row


def test_every_link_of_the_readme_leads_somewhere():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
        for h in re.findall(r"^#+ (.+)$", text, re.M)
    }
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("http"):
            assert (ROOT / link).is_file(), link
