"""The order of the house: what design.md and the file's own head say of its structure."""
from __future__ import annotations

import ast
import functools
import inspect
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPT, posix_only

try:
    import symtable
except ImportError:  # PyPy
    symtable = None

SECTIONS = ["Constants and schema", "Errors", "Small helpers", "Files", "Platform differences", "Store", "Runner", "Worker", "Engines",
         "Supervisor", "Reports", "Views", "Metrics", "Python API", "Commands", "Page", "Web", "Command table", "Parser", "Main"]
BANNER = re.compile(r"^# == (.+?) =+$", re.M)
SOURCE = SCRIPT.read_text("utf-8") if SCRIPT.exists() else ""
LINES = SOURCE.splitlines()
# All that is imported must be in every Python's own library: sys.stdlib_module_names is from 3.10.
STDLIB = set(getattr(sys, "stdlib_module_names", ())) or None


BANNERS = [(SOURCE.count("\n", 0, banner.start()) + 1, banner.group(1)) for banner in BANNER.finditer(SOURCE)]


@functools.lru_cache(maxsize=None)
def tree():
    """The syntax of the file.  Parsing takes half a second, and each process that runs tests imports this module."""
    return ast.parse(SOURCE)


def functions():
    return [node for node in ast.walk(tree()) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def section_of(line):
    """The section that a line of the file stands in; the head has none."""
    return max([(0, "head")] + [banner for banner in BANNERS if banner[0] <= line])[1]


def length(function):
    return function.end_lineno - function.lineno + 1


def test_the_sections_stand_in_order_and_are_listed_in_the_head():
    assert BANNER.findall(SOURCE) == SECTIONS
    head = ast.get_docstring(tree())
    listed = re.findall(r"^  (%s) {2,}\S" % "|".join(SECTIONS), head, re.M)
    assert listed == SECTIONS


def test_there_is_no_section_for_odds_and_ends():
    assert not re.search(r"(?i)^# .*\b(misc|utils?|utilities|junk|other)\b", "\n".join(BANNER.findall(SOURCE)))


@pytest.mark.skipif(symtable is None, reason="not on PyPy: it has no symtable")
def test_each_section_calls_only_upwards():
    sections = {}  # name of a top-level definition -> the index of its section
    for node in tree().body:
        names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [
            target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        for name in names:
            section = section_of(node.lineno)
            sections.setdefault(name, SECTIONS.index(section) if section in SECTIONS else -1)
    wrong = []

    def look(table):
        here = section_of(table.get_lineno())
        if table.get_type() == "function":
            for symbol in table.get_symbols():
                if symbol.is_global() and sections.get(symbol.get_name(), -1) > SECTIONS.index(here):
                    wrong.append("%s (%s) uses %s" % (table.get_name(), here, symbol.get_name()))
        for child in table.get_children():
            look(child)

    look(symtable.symtable(SOURCE, str(SCRIPT), "exec"))
    assert wrong == []


def test_only_the_standard_library_is_imported():
    allowed_on_windows = {"_winapi", "msvcrt", "winreg"}
    for node in ast.walk(tree()):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules = [node.module]
        else:
            continue
        for module in modules:
            top = module.split(".")[0]
            assert STDLIB is None or top in STDLIB or top in allowed_on_windows, "line %d imports %s" % (node.lineno, module)


def test_the_grammar_is_that_of_python_3_8():
    ast.parse(SOURCE, feature_version=(3, 8))


def test_what_system_this_is_is_asked_in_the_platform_section_alone():
    for number, line in enumerate(SOURCE.splitlines(), 1):
        if re.search(r"\b(os\.name|sys\.platform|platform\.system)\b", line):
            assert section_of(number) == "Platform differences", "line %d: %s" % (number, line.strip())


def test_what_an_error_of_sqlite_means_is_asked_in_one_place_alone():
    for number, line in enumerate(LINES, 1):
        if re.search(r"\bin (str\(error\)|error\.args)|sqlite_errorcode", line):
            assert section_of(number) == "Errors", "line %d: %s" % (number, line.strip())


def test_sql_stands_in_the_store_and_the_schema_alone():
    statement = re.compile(r"^\s*(SELECT .*\bFROM|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|DELETE FROM|CREATE (TABLE|INDEX|"
                           r"UNIQUE|TRIGGER)|ALTER TABLE|DROP |PRAGMA \w|BEGIN( IMMEDIATE)?$|COMMIT$|ROLLBACK$|VACUUM)", re.S)
    for node in ast.walk(tree()):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and statement.match(node.value):
            assert section_of(node.lineno) in ("Store", "Constants and schema"), "line %d: %.60s" % (node.lineno, node.value)
        if isinstance(node, ast.Attribute) and node.attr in ("execute", "executemany", "executescript"):
            assert section_of(node.lineno) == "Store", "line %d" % node.lineno


def operands(node):
    """What a text is put together from by +, % and f-strings."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        return operands(node.left) + operands(node.right)
    if isinstance(node, (ast.Tuple, ast.JoinedStr)):
        return [operand for part in getattr(node, "elts", None) or node.values for operand in operands(part)]
    return operands(node.value) if isinstance(node, ast.FormattedValue) else [node]


def foreign_parts(source):
    """(line, text) of whatever stands in a statement of SQL but lists of columns and what Store itself has made."""
    ours = re.compile(r"(JOB_SELECT|JOB_FILTER|narrowest\(values\)|REMOVABLE|LARGEST|CLAIM_LIMIT|APPLICATION_ID|mark << 8 \| SCHEMA_VERSION|assignments\(tuple\(\w+\)\)|startable\(\w+\)|marks\(\w+\)"
                      r"|\"[^\"]*\"\.join\(.*\)|(row\[0\]|column|columns|held|key|label|last|order|rest|table|where|wrong))$", re.S)
    found, lines = set(), [line.encode() for line in source.splitlines()]
    for node in ast.walk(ast.parse(source)):
        parts = operands(node) if isinstance(node, (ast.BinOp, ast.JoinedStr)) else [None]
        first = getattr(parts[0], "value", None)
        if isinstance(first, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|PRAGMA) ", first):
            for part in parts[1:]:
                text = b"\n".join(lines[part.lineno - 1:part.end_lineno])[part.col_offset:].decode()
                text = text[:part.end_col_offset - part.col_offset] if part.lineno == part.end_lineno else text
                if not isinstance(part, ast.Constant) and not ours.match(text):
                    found.add((part.lineno, text))
    return sorted(found)


def test_sql_is_put_together_from_column_lists_only():
    assert foreign_parts(SOURCE) == []
    for sample in ('db.execute(f"SELECT * FROM job WHERE name={name}")', 'db.execute("DELETE FROM job WHERE id=%d" % args.id)',
                   'db.execute("SELECT " + ref + " FROM job")', 'db.execute("UPDATE job SET name=\'%s\'" % (name,))'):
        assert len(foreign_parts(sample)) == 1, sample


def test_functions_are_short():
    too_long = ["%s: %d lines" % (f.name, length(f)) for f in functions() if length(f) > 60]
    assert too_long == []
    lengths = sorted(map(length, functions()))
    assert statistics.median(lengths) <= 15
    assert lengths[int(len(lengths) * 0.9)] <= 35


def test_functions_have_at_most_six_parameters():
    """Queue.enqueue has a keyword per option of jobs: test_python.py compares them with the table."""
    many = {}
    for f in functions():
        names = [argument.arg for argument in f.args.posonlyargs + f.args.args + f.args.kwonlyargs if argument.arg not in ("self", "cls")]
        if len(names) + bool(f.args.vararg) + bool(f.args.kwarg) > 6:
            many[f.name] = names
    assert set(many) == {"enqueue"}, many


def test_a_call_gives_no_bare_true_or_false():
    """By its name a reader knows what it selects; see style.md for what is better."""
    ours = {f.name for f in functions()} - {"call"}  # of kernel32
    for node in ast.walk(tree()):
        name = getattr(node.func, "attr", getattr(node.func, "id", None)) if isinstance(node, ast.Call) else None
        if name in ours:
            assert not [a for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, bool)], "line %d: %s" % (node.lineno, name)


def test_statements_of_sql_list_states_as_the_constants_do():
    """A new state must be put into each list: a partial index is found by its text alone, so SQL can't take it from a constant."""
    import queuectl
    known = {frozenset(group) for group in (queuectl.WAITING, queuectl.UNFINISHED, queuectl.FINAL, (*queuectl.FINAL, "failed"))}
    known |= {frozenset(group) for group in (("dead", "cancelled"), ("failed", "dead"), ("completed", "failed", "dead"))}  # bad, failed, ended
    listed = [frozenset(re.findall(r"'(\w+)'", words)) for words in re.findall(r"\bstate (?:NOT )?IN \(('[^)]*)\)", SOURCE)]
    assert len(listed) > 20 and not [group for group in listed if group not in known]
    assert set(queuectl.FINAL) | set(queuectl.UNFINISHED) == set(queuectl.STATES) == set(queuectl.STATE_COLOURS) - {"held"}
    assert {state for moves in queuectl.TRANSITIONS.values() for pair in moves.items() for state in pair} == set(queuectl.STATES)
    script = re.search(r"const STATES = \[(.*?)\], WAITING = \[(.*?)\]", queuectl.PAGE_SCRIPT)
    assert [tuple(re.findall(r"\w+", words)) for words in script.groups()] == [queuectl.STATES, queuectl.WAITING]


def test_statements_of_sql_number_the_gates_as_the_constants_do():
    import queuectl
    gates = {"job_ready": queuectl.READY, "job_due": queuectl.DUE, "job_keyed": queuectl.KEYED, "job_own": queuectl.RESERVED}
    uses = re.findall(r"INDEX(?:ED BY)? (job_ready|job_due|job_keyed|job_own)\b[^;]*?\bgate=(\d)", re.sub(r'"\s*\n\s*"', "", SOURCE))
    assert {name for name, _ in uses} == set(gates) and len(uses) > 10
    assert [(name, gate) for name, gate in uses if gates[name] != int(gate)] == []


def test_the_head_says_where_a_new_thing_goes_by_names_that_are_there():
    import queuectl
    places = ast.get_docstring(tree()).split("Where a new thing goes")[1].split("\n", 1)[1]
    assert len(places.splitlines()) == 9
    names = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b|\bOS\b|\bPosix\w*|\bSlurm\b|\bLook\b", places)) - {"PAGES"}
    assert len(names) > 12 and [name for name in names if not hasattr(queuectl, name)] == []
    assert "const PAGES = {" in queuectl.PAGE_SCRIPT


def test_the_design_names_each_part_of_the_store():
    import queuectl
    text = (ROOT / "design.md").read_text("utf-8")
    parts = [part.__name__ for part in queuectl.Part.__subclasses__()]
    assert len(parts) > 9 and [name for name in parts if "`%s`" % name not in text] == []


def test_main_is_short_and_comes_last():
    main = [node for node in tree().body if isinstance(node, ast.FunctionDef)][-1]
    assert main.name == "main"
    assert length(main) <= 20
    assert section_of(main.lineno) == "Main"


def test_classes_are_short():
    for node in ast.walk(tree()):
        if isinstance(node, ast.ClassDef):
            assert length(node) <= 400, node.name


def test_the_parts_of_the_store_use_no_private_name_of_each_other():
    for node in ast.walk(tree()):
        if (isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
                and node.attr not in ("_replace", "_asdict", "_fields", "_make")):  # a Record's, as of a namedtuple
            owner = node.value
            assert isinstance(owner, ast.Name) or section_of(node.lineno) != "Store", "line %d: %s" % (node.lineno, node.attr)


def test_no_name_is_defined_twice():
    """The second definition would replace the first in silence."""
    for scope in ast.walk(tree()):
        if isinstance(scope, (ast.Module, ast.ClassDef)):
            names = [node.name for node in scope.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
            assert sorted(set(names)) == sorted(names), getattr(scope, "name", "the module")


def test_no_exception_is_swallowed_unseen():
    for node in ast.walk(tree()):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "line %d: a bare except" % node.lineno
            if len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                told = LINES[node.lineno - 1:node.body[0].lineno]
                assert any("#" in line for line in told), "line %d: why may it pass?" % node.lineno
        if (isinstance(node, ast.Attribute) and node.attr == "exit" and isinstance(node.value, ast.Name)
                and node.value.id == "sys"):
            assert section_of(node.lineno) in ("head", "Main"), "line %d: sys.exit below main" % node.lineno


def test_lines_fit_on_a_screen():
    for number, line in enumerate(SOURCE.splitlines(), 1):
        assert len(line) <= 140, number
        assert line == line.rstrip(), "line %d ends in blanks" % number


def test_importing_the_program_loads_no_heavy_module():
    heavy = "argparse subprocess json logging multiprocessing threading socket shutil uuid hashlib http datetime"
    code = "import sys; sys.path.insert(0, %r); import queuectl; print(*(m for m in %r.split() if m in sys.modules))"
    done = subprocess.run([sys.executable, "-IS", "-c", code % (str(ROOT), heavy)], stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().split() in ([], ["datetime"][sys.implementation.name == "cpython":])  # PyPy's _sqlite3 imports it


# ---- the commands ------------------------------------------------------------------------------

def words_of_commands():
    """Every command as its words, read from the program's own help."""
    if not SCRIPT.exists():
        return []
    import queuectl
    return [command.words for command in queuectl.COMMANDS if not command.words[0].startswith("_")]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("words", words_of_commands(), ids=" ".join)
def test_the_help_of_a_command_has_purpose_options_and_an_example(queue, words):
    text = queue.look([*words, "--help"]).stdout
    lines = text.splitlines()
    assert re.match("usage: queuectl " + " ".join(words) + r"( |$)", lines[0])
    purpose = next(block for block in text.split("\n\n")[1:] if block.strip())
    assert len(purpose.strip().splitlines()) == 1, purpose
    assert "--help" in text
    assert re.search(r"(?im)^examples?:", text)
    assert re.search(r"queuectl(\.py)? .*%s\b" % " ".join(words), text.split("xample", 1)[1])
    assert max(map(len, lines)) <= 100
    assert queue.look(["help", *words]).stdout == text
    assert not queue.db.exists()


def listed_commands(text):
    """The full words of each command in a help text, in its order: they stand in a column of 14 characters."""
    return [line[2:16].rstrip() for line in text.splitlines() if line.startswith("  ")]


def test_the_help_of_the_program_lists_every_command_by_its_full_words_and_no_other(queue):
    wanted = [" ".join(words) for words in words_of_commands()]
    assert len(set(wanted)) == len(wanted) > 40
    for word in ("--help", "-h", "help"):
        assert listed_commands(queue.out(word)) == wanted
    assert listed_commands("usage: x\n\nlook\n  cron           things\n  worker restart things\n") == ["cron", "worker restart"]


README = (ROOT / "README.md").read_text("utf-8") if (ROOT / "README.md").exists() else ""


def shown_in(text, words):
    """Whether a text shows a command by its full words, as code."""
    return bool(re.search(r"(queuectl(\.py)? +|`)" + " +".join(map(re.escape, words)) + r"(?![\w-])", text))


@pytest.mark.skipif(not README, reason="no README.md")
@pytest.mark.parametrize("words", words_of_commands(), ids=" ".join)
def test_the_readme_shows_every_command_by_its_full_words(words):
    assert shown_in(README, words)


def test_a_command_that_a_text_does_not_show_is_found():
    assert not shown_in("`cron add nightly`, `worker restarts`, the cron list", ("cron", "list"))
    assert not shown_in("`worker restarts`, `worker re-start`", ("worker", "restart"))
    assert shown_in("queuectl.py  worker restart", ("worker", "restart"))


def test_each_option_of_the_table_belongs_to_a_command_and_can_be_parsed():
    import queuectl
    taken = {name for command in queuectl.COMMANDS for name in command.takes}
    lines = [line.split(None, 5) for line in queuectl.OPTIONS.split("\n")]
    assert len(lines) > 80
    for sets, flags, metavar, kind, default, meaning in lines:
        assert set(sets.split(",")) <= taken, (sets, flags)
        if kind != ".":
            queuectl.option_type(kind, flags)  # a KeyError or ValueError: no such kind
        assert metavar != "." or kind == ".", (flags, "a flag has no value")
        assert meaning == "." or meaning[0] in "`" or meaning[0].islower() or meaning.split()[0].isupper(), (flags, meaning)
    names = {name for name in taken if name not in {"job", *(name for line in lines for name in line[0].split(","))}}
    assert names <= {"-".join(command.words) for command in queuectl.COMMANDS}, "sets that no option has"


def test_options_that_exclude_each_other_are_options_of_one_command():
    import queuectl
    dests = [{action.dest for action in queuectl.build_parser(command)._actions} for command in queuectl.COMMANDS]
    for pair in queuectl.EXCLUSIVE.split():
        assert any(set(pair.split("-")) <= found for found in dests), pair


def pythons():
    """Every Python from 3.8 on this machine, the one of the tests aside."""
    found = {}
    candidates = list(Path.home().glob(".pyenv/versions/3.*/bin/python3"))
    candidates += [Path(p) for p in map(shutil.which, ("pypy3", "/usr/bin/python3")) if p]
    for path in candidates:
        real = path.resolve()
        version = re.search(r"3\.(\d+)", str(path))
        if not version or int(version.group(1)) >= 8:
            found.setdefault(str(real), str(path))
    return sorted(found.values())


@pytest.mark.slow
@posix_only("the Pythons that are installed; on Windows tests/matrix runs several")
@pytest.mark.parametrize("python", pythons())
def test_the_program_starts_on_every_python_of_this_machine(python, queue):
    done = queue.run([python, "-IS", str(SCRIPT), "--help"])
    assert "enqueue" in done.stdout and done.stderr == ""
    program = [python, "-IS", str(SCRIPT), "--db", str(queue.db)]
    assert queue.run([*program, "enqueue", "exit 0"]).stdout == "1\n"
    queue.run([*program, "worker", "start", "--foreground", "--drain"])
    assert queue.job(1).state == "completed"


def old_pythons():
    return sorted(str(path) for path in Path.home().glob(".pyenv/versions/*/bin/python")
                  if re.search(r"/3\.[0-7]\.", str(path)))  # Python 2 cannot even read the annotations


@posix_only("the Pythons of pyenv")
@pytest.mark.parametrize("python", old_pythons())
def test_a_python_that_is_too_old_gets_one_line(python, queue):
    done = queue.run([python, str(SCRIPT), "--version"], check=False)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1 and "3.8" in done.stderr, done.stderr


def parameters(function):
    """Names, kinds and defaults, without `self`."""
    found = [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
    return [parameter for parameter in found if parameter[0] != "self"]


def public(cls):
    """Names of the methods that others may call."""
    return {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}


def differences(first, second, names):
    """Which of `names` one of two classes lacks, or has with other parameters."""
    found = [getattr(cls, "__name__") + " lacks " + name for cls in (first, second) for name in names if not hasattr(cls, name)]
    for name in names:
        one, other = getattr(first, name, None), getattr(second, name, None)
        if callable(one) and callable(other) and parameters(one) != parameters(other):
            found.append("%s: %s, %s" % (name, parameters(one), parameters(other)))
    return sorted(found)


def test_every_system_has_what_the_sections_below_ask_of_it_with_the_same_parameters():
    import queuectl
    below = SOURCE[SOURCE.index("# == Store =="):]
    asked = set(re.findall(r"\bOS\.(\w+)", below))
    assert len(asked) > 30
    for system in (queuectl.Posix, queuectl.Linux):
        assert differences(system, queuectl.Windows, asked) == [], system
        shared = public(system) & public(queuectl.Windows)
        assert differences(system, queuectl.Windows, shared) == [], system


def test_the_platform_object_holds_no_state(queue):
    import queuectl
    assert vars(queuectl.OS) == {}


# What a class has for others of its own system.
OF_ITS_OWN = {"WindowsSignals": {"wait_any"}}


@pytest.mark.parametrize("kind", ["Process", "Signals", "Workers", "Keys"])
def test_the_classes_of_the_systems_have_the_same_methods_with_the_same_parameters(kind):
    import queuectl
    posix, windows = (getattr(queuectl, system + kind) for system in ("Posix", "Windows"))
    names = (public(posix) | public(windows)) - OF_ITS_OWN.get(posix.__name__, set()) - OF_ITS_OWN.get(windows.__name__, set())
    assert names
    assert differences(posix, windows, names) == []
    assert parameters(posix.__enter__) == parameters(windows.__enter__) if kind == "Keys" else not hasattr(posix, "__enter__")


def test_a_difference_between_systems_is_found():
    class One:
        def start(self, pid): pass

    class Other(One):
        def start(self, pid, hard=False): pass

    class None_:
        pass

    assert len(differences(One, Other, {"start"})) == 1
    assert differences(One, One, {"start"}) == []
    assert differences(One, None_, {"start"}) == ["None_ lacks start"]


def test_the_python_api_is_what_the_readme_describes():
    import queuectl
    section = (ROOT / "README.md").read_text("utf-8").split("## From Python")[1].split("\n## ")[0]
    for name in queuectl.__all__:
        assert hasattr(queuectl, name) and re.search(r"\b%s\b" % name, section), name
    for name in public(queuectl.Queue) - {"close"}:
        assert re.search(r"`%s\(" % name, section), name
