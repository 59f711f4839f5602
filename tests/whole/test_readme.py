"""What README and docs/ name is there: links, commands, keys, options, functions and tests."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from scm.__main__ import COMMANDS
from scm.commands import results

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
PAGES = {path.name: path.read_text() for path in [README, *sorted(DOCS.glob("*.md"))]}
MOST_WORDS = 1200  # of README: two screens

FENCE = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
LINES = {  # page -> the commands of its blocks, a continued line joined
    name: [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").split("\n")]
    for name, text in PAGES.items()
}
SPANS = {  # page -> its code within sentences and tables
    name: [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    for name, text in PAGES.items()
}
CODE = {name: LINES[name] + SPANS[name] for name in PAGES}
GROUPS = {
    group.relative_to(CONF).as_posix(): {option.stem for option in group.glob("*.yaml")}
    for group in CONF.rglob("*")
    if group.is_dir()
}
GONE = re.compile(
    r"objective\.(lr|betas|dropout|P_mean|P_std|jvp|N)$"
)  # named to say where they went
ROWS = re.findall(r"\| `(scm\.[\w.]+)` \| `(tests/[\w/]+\.py)::(\w+)` \|", PAGES["methods.md"])

each_page = pytest.mark.parametrize("page", PAGES)


def keys_of(node, prefix=""):
    """Every dotted key of a yaml, of groups too."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from keys_of(value, f"{prefix}{key}.")


def all_keys():
    """Every key of conf/, an option's where its group stands or where the file says."""
    for path in CONF.rglob("*.yaml"):
        text, group = path.read_text(), path.parent.relative_to(CONF).as_posix()
        is_global = "@package _global_" in text or group == "."
        yield from keys_of(yaml.safe_load(text), "" if is_global else group.replace("/", ".") + ".")


KEYS = {*all_keys(), "hydra"}


def table(page, mark):
    """The Markdown table after <!-- mark -->, its lines."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n(.*?)\n<!-- end -->", PAGES[page], re.S)
    assert found, f"{page}: no table {mark}"
    return found[1].split("\n")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def words_of(line):
    """A command line as a shell splits it, without its comment, environment and redirection."""
    found = shlex.split(line, comments=True)
    while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
        found.pop(0)
    return found[: found.index(">")] if ">" in found else found


def commands(page, *start):
    """The commands of a page that begin with these words, without them."""
    for line in CODE[page]:
        if " ".join(start) in line and "$(" not in line:
            found = words_of(line)
            if tuple(found[: len(start)]) == start:
                yield found[len(start) :]


# ---------------------------------------------------------------- README


def test_readme_is_two_screens():
    assert len(PAGES["README.md"].split()) <= MOST_WORDS


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"README.md"}))
def test_readme_leads_to_every_page(page):
    assert f"](docs/{page})" in PAGES["README.md"]


def test_readmes_options_are_all_and_the_default_is_the_first():
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    default = {
        group: option for one in defaults if isinstance(one, dict) for group, option in one.items()
    }
    rows = re.findall(r"^\| `([\w/]+)` \| (`.+`) \|$", PAGES["README.md"], re.M)
    assert len(rows) >= 8
    for group, text in rows:
        options = re.findall(r"`(\w+)`", text)
        assert len(options) == len(set(options)) and set(options) == GROUPS[group], group
        if isinstance(default.get(group), str):
            assert options[0] == default[group], group


def test_configurations_table_has_every_option():
    rows = dict(re.findall(r"^\| `([\w/]+)` \| (.+) \|$", PAGES["configuration.md"], re.M))
    for group, options in GROUPS.items():
        assert group in rows, group
        named = set(re.findall(r"`(\w+)`", rows[group]))
        others = {o for o in options if o.startswith("fashion_mnist_") or o.endswith("_gpu")}
        assert options - others <= named, group


# ---------------------------------------------------------------- every page


@each_page
def test_every_relative_link_and_picture_is_there(page):
    place = REPOSITORY if page == "README.md" else DOCS
    links = re.findall(r"\]\(([^)#:]+)\)", PAGES[page])
    assert [link for link in links if not (place / link).exists()] == []


@each_page
def test_every_target_of_make_is_there(page):
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for found in commands(page, "make"):
        asked = [word for word in found if "=" not in word]
        assert set(asked) <= targets, found


class Parsed(BaseException):
    """A command has understood its arguments, and goes no further."""


@each_page
def test_every_command_understands_its_arguments(page, monkeypatch):
    understand = argparse.ArgumentParser.parse_args

    def only_parse(self, *arguments, **more):
        understand(self, *arguments, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    for name, *arguments in filter(None, commands(page, "python", "-m", "scm")):
        assert name in {*COMMANDS, "COMMAND"}, name
        if arguments and name != "COMMAND":
            with pytest.raises(Parsed):
                importlib.import_module(f"scm.commands.{name}").main(arguments)


@each_page
def test_every_override_is_of_a_key_or_an_option_that_is_there(page):
    given = [word for found in commands(page, "python", "run.py") for word in found]
    given += [span for span in SPANS[page] if re.fullmatch(r"[\w./]+=\S+", span)]
    for word in given:
        key, _, value = word.partition("=")
        if not value or key.startswith(("hydra", "-")) or key.isupper():
            continue
        if key in GROUPS:
            options = set(re.findall(r"\w+", value))
            own = set(re.findall(rf"mine/{key}/(\w+)\.yaml", PAGES[page]))  # the page's own files
            assert options <= GROUPS[key] | own or value.isupper(), word
        else:
            assert key in KEYS or (REPOSITORY / "sweeps" / key).is_dir(), word


@each_page
def test_every_key_is_there(page):
    for span in SPANS[page]:
        if re.fullmatch(
            r"(trainer|optimizer|objective|model|data|sampler|hydra\.callbacks)(\.\w+)+", span
        ):
            assert span in KEYS or GONE.match(span), span


@each_page
def test_every_sweep_is_there(page):
    named = re.findall(r"-cn (\w+)", PAGES[page])
    there = {path.stem for path in (REPOSITORY / "sweeps").glob("*.yaml")}
    assert set(named) <= there | {"NAME"}


@each_page
def test_every_path_and_module_is_there(page):
    for span in SPANS[page]:
        if re.fullmatch(r"(scm|conf|docs|sweeps|tests|pretrained|benchmark)/[\w./*-]*", span):
            assert re.search("[A-Z]{2}", span) or list(REPOSITORY.glob(span)), span
        elif re.fullmatch(r"scm(\.\w+)+", span):
            assert found(span), span
        elif test := re.fullmatch(r"(tests/[\w/]+\.py)::(\w+)", span):
            assert f"def {test[2]}(" in (REPOSITORY / test[1]).read_text(), span


def found(dotted):
    """Whether a dotted name is a module, or something in one."""
    try:
        importlib.import_module(dotted)
        return True
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return hasattr(importlib.import_module(module), name)


# ---------------------------------------------------------------- single pages


def test_methods_has_a_row_for_every_equation():
    own = PAGES["methods.md"].partition("## Equation, function, test")[2]
    lines = [line for line in own.split("\n") if line.startswith("| ")]
    assert len(ROWS) == len(lines) - 1 >= 30  # less the head; every row has its three cells


def test_methods_says_of_every_objective_what_it_is():
    own = PAGES["methods.md"].partition("| `objective` |")[2].partition("\n\n")[0]
    named = [name for line in own.split("\n") for name in re.findall("`([a-z_]+)`", line[:40])]
    assert sorted(named) == sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))


def test_architecture_names_every_module():
    named, package = set(), ""
    for name in re.findall(r"^\| `([\w/]+)` \|", PAGES["architecture.md"], re.M):
        package = name if name.startswith("scm/") else package
        named |= {f"{package}/{name}.py"} - {f"{package}/{package}.py"}
    there = {
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "scm").glob("*/*.py")
    }
    there = {path for path in there if not path.endswith("__init__.py")}
    assert (sorted(there - named), sorted(named - there)) == ([], [])  # unnamed, gone


@pytest.mark.parametrize(("page", "data"), [("results.md", "mnist"), ("colour.md", "color_mnist")])
def test_the_tables_of_results_are_the_commands_output(page, data):
    assert table(page, f"python -m scm results pretrained/{data}_*.json") == measured(data)


def test_the_table_of_results_in_the_readme_is_a_part_of_it():
    """Six columns of the models between braces, as a shell reads them."""
    names = re.search(r"results pretrained/mnist_\{([\w,]+)\}-\*-n10000", PAGES["README.md"])[1]
    shown = ("model", "---", *(f"mnist_{name}" for name in names.split(",")))
    command = f"python -m scm results pretrained/mnist_{{{names}}}-*-n10000.json, six columns"
    assert [cells(line) for line in table("README.md", command)] == [
        cells(line)[:6] for line in measured("mnist") if cells(line)[0] in shown
    ]


def measured(data):
    """The lines of the table of what ships for these data."""
    files = sorted((REPOSITORY / "pretrained").glob(f"{data}_*.json"))
    return results.table([results.read(file) for file in files]).split("\n")


@pytest.mark.parametrize("sweep", ["tangent", "time_embedding", "weighting", "discretization"])
def test_the_tables_of_ablations_are_the_reports(sweep):
    """One row per setting, cut from the summary.md that the sweep wrote."""
    written = (DOCS / "ablations" / sweep / "summary.md").read_text().split("\n")
    rows = [cells(line) for line in written if re.match(r"\| \w+=", line)]
    assert len(rows) >= 4
    shown = [cells(line) for line in table("ablations.md", sweep)[2:]]
    assert shown == [[row[0], row[2], row[3]] for row in rows]


@pytest.mark.parametrize(
    ("name", "folder"), [("atlas_toy", "toy"), ("atlas", "mnist"), ("atlas_scratch", "scratch")]
)
def test_the_tables_of_the_atlas_are_the_reports(name, folder):
    """All of their columns, a row per method and rate."""
    written = (DOCS / "atlas" / folder / "summary.md").read_text().split("\n")
    rows = [cells(line) for line in written if line.startswith((f"| {name}=", "| atlas="))]
    assert len(rows) == 22
    assert [cells(line) for line in table("atlas.md", name)[2:]] == rows
