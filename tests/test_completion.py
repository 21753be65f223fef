"""completion, in the real shells: commands, options, states, ids and names of a live queue, files where files are meant."""
from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from conftest import LiveQueue, posix_only, wait_until
from screen import put_on_path, screens  # noqa: F401 (a fixture)

pytestmark = posix_only("tmux and the shells of a POSIX system")

# How each is started with nothing but its start-up file, and what stands in that.
SHELLS = {
    "bash": (["bash", "--noprofile", "--rcfile", "RC", "-i"], """PS1='ready> '
bind 'set bell-style none' 'set show-all-if-ambiguous on' 'set completion-query-items 0' 'set page-completions off'
eval "$(queuectl completion bash)"
"""),
    "zsh": (["zsh", "-d", "-i"], """PS1='ready> '
unsetopt beep promptsp
autoload -Uz compinit && compinit -D -u
eval "$(queuectl completion zsh)"
"""),
    "fish": (["fish", "--no-config", "-i", "-C", "source 'RC'"], """function fish_prompt; echo 'ready> '; end
set -g fish_greeting
set -g fish_autosuggestion_enabled 0
queuectl completion fish | source
"""),
}
each_shell = pytest.mark.parametrize("shell", [shell if shell == "bash" else pytest.param(shell, marks=pytest.mark.slow) for shell in SHELLS])


@pytest.fixture(scope="module")
def two_jobs(tmp_path_factory):
    """A queue made once: jobs 1 (completed, `nightly-backup`) and 2 (dead, `mailer`), queue mail, batch 1, schedule `sweep`."""
    queue = LiveQueue(tmp_path_factory.mktemp("two"))
    lines = [json.dumps({"command": "exit 0", "name": "nightly-backup"}),
             json.dumps({"command": "exit 1", "name": "mailer", "queue": "mail", "max_retries": 0})]
    queue.cli("run", "--file", "-", stdin="\n".join(lines), check=False)
    queue.cli("cron", "add", "sweep", "@daily", "exit 0")
    return queue


@pytest.fixture
def filled(queue, two_jobs):
    """A copy of that queue, and files to complete."""
    shutil.copytree(str(two_jobs.files), str(queue.files))
    shutil.copy(str(two_jobs.db), str(queue.db))
    (queue.dir / "commands.txt").write_text("exit 0\n")
    (queue.dir / "commons").mkdir()
    return queue


class Prompt:
    """A shell at its prompt, with the completion loaded; `after` types a line and Tab and tells what became of it."""

    def __init__(self, screen):
        self._screen = screen
        self._alone()

    def _alone(self):
        """Empties the line and the screen."""
        def only_the_prompt():
            self._screen.keys("C-u", "C-l")
            return re.fullmatch(r"ready> *\n*", self._screen.text())
        wait_until(only_the_prompt, 20, "a bare prompt", 0.05)

    def after(self, line, pattern):
        """Types the line, then Tab, until the pattern is on the screen; then empties the line again."""
        self._screen.type(line)
        self._screen.until(r"^ready> " + re.escape(line.rstrip()))
        self._screen.keys("Tab")
        text = self._screen.until(pattern, 10)
        self._alone()
        return text

    def becomes(self, line, whole):
        """The one way to go on is filled in."""
        return self.after(line, r"^ready> " + re.escape(whole) + r" ?$")

    def offers(self, line, *words):
        """Where there are several they are listed, in whatever order and layout the shell has."""
        return self.after(line, r"(?s)\A" + "".join(r"(?=.*\n(?:.*\s)?%s(?![\w-]))" % re.escape(word) for word in words))


@pytest.fixture
def prompt(filled, screens):  # noqa: F811
    def open_shell(shell, env=None, start=None):
        if not shutil.which(shell):
            pytest.skip("%s is not installed" % shell)
        words, usual = SHELLS[shell]
        start_up = filled.home / ".zshrc"  # for zsh the name matters
        start_up.write_text(usual if start is None else start)
        settings = {"PATH": put_on_path(filled) + os.pathsep + filled.env["PATH"], "QUEUECTL_DB": str(filled.db), "TERM": "xterm-256color",
                    "ZDOTDIR": str(filled.home), "HISTFILE": None}
        return Prompt(screens([word.replace("RC", str(start_up)) for word in words], 100, 40, dict(settings, **(env or {}))))
    return open_shell


@pytest.mark.broad
@each_shell
def test_commands_and_their_second_words_are_completed(prompt, shell):
    here = prompt(shell)
    here.becomes("queuectl enq", "queuectl enqueue")
    here.offers("queuectl re", "release", "retry")
    here.offers("queuectl worker st", "start", "stop")
    here.becomes("queuectl dlq pu", "queuectl dlq purge")
    here.becomes("queuectl config uns", "queuectl config unset")
    assert "_complete" not in here.offers("queuectl ", "backup", "cancel", "doctor")


@each_shell
def test_options_are_completed(prompt, shell):
    here = prompt(shell)
    here.becomes("queuectl enqueue --max-r", "queuectl enqueue --max-retries")
    here.becomes("queuectl worker start --idle", "queuectl worker start --idle-timeout")
    here.offers("queuectl list --s", "--schedule", "--since", "--sort", "--state")


@pytest.mark.broad
@each_shell
def test_states_settings_and_other_fixed_words_are_completed(prompt, shell):
    here = prompt(shell)
    here.becomes("queuectl list --state proc", "queuectl list --state processing")
    here.offers("queuectl list --state ", "pending", "processing", "completed", "failed", "dead", "cancelled")
    here.becomes("queuectl config set keep", "queuectl config set keep_finished")
    here.becomes("queuectl list --sort dur", "queuectl list --sort duration")
    here.becomes("queuectl completion f", "queuectl completion fish")
    here.becomes("queuectl service lau", "queuectl service launchd")
    here.becomes("queuectl enqueue --backoff lin", "queuectl enqueue --backoff linear")


@each_shell
def test_ids_and_names_are_those_of_the_live_queue(prompt, filled, shell):
    here = prompt(shell)
    here.becomes("queuectl show night", "queuectl show nightly-backup")
    here.offers("queuectl wait ", "1", "2", "nightly-backup", "mailer")
    here.becomes("queuectl dlq retry ma", "queuectl dlq retry mailer")
    assert not re.search(r"nightly-backup", here.offers("queuectl dlq purge ", "2", "mailer"))
    filled.enqueue("--name", "zebra", "exit 0")  # while the shell is open
    here.becomes("queuectl cancel 1 zeb", "queuectl cancel 1 zebra")
    here.becomes("queuectl enqueue --after zeb", "queuectl enqueue --after zebra")


@pytest.mark.broad
@each_shell
def test_queues_batches_and_schedules_are_completed(prompt, shell):
    here = prompt(shell)
    here.becomes("queuectl queue pause ma", "queuectl queue pause mail")
    here.becomes("queuectl list --queue ma", "queuectl list --queue mail")
    here.becomes("queuectl cron run sw", "queuectl cron run sweep")
    here.becomes("queuectl batch show ", "queuectl batch show 1")


@pytest.mark.broad
@each_shell
def test_values_of_settings_and_parts_of_lists_are_completed(prompt, shell):
    here = prompt(shell)
    here.becomes("queuectl config set sync fu", "queuectl config set sync full")
    here.becomes("queuectl config set backoff lin", "queuectl config set backoff linear")
    here.becomes("queuectl list --columns id,pri", "queuectl list --columns id,priority")
    here.becomes("queuectl worker start --queue default,ma", "queuectl worker start --queue default,mail")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_what_is_offered_is_described_where_the_shell_shows_it(prompt, shell):
    here = prompt(shell)
    assert "start worker processes" in here.after("queuectl worker st", "start worker processes")
    assert "completed" in here.after("queuectl show ", r"1 .*completed")


@pytest.mark.broad
def test_every_name_is_completed_by_its_prefix_however_many_there_are(filled):
    lines = [json.dumps({"command": "exit 0", "name": "n%05d" % number}) for number in range(3000)]
    filled.cli("enqueue", "--file", "-", stdin="\n".join(lines))
    assert filled.out("_complete", "show", "n0001").splitlines() == ["n%05d" % number for number in range(10, 20)]
    assert filled.out("_complete", "dlq", "retry", "n0001") == "" and filled.out("_complete", "dlq", "retry", "ma") == "mailer"
    described = filled.out("_complete", "show", "n00010", env={"QUEUECTL_DESCRIBE": "1"})
    assert re.fullmatch(r"n00010\tjob \d+, pending", described)


def test_an_argument_is_completed_by_its_place(filled):
    assert filled.out("_complete", "config", "set", "sync", "").splitlines() == ["full", "normal"]
    assert filled.out("_complete", "config", "set", "sync", "full", "") == ""
    assert filled.out("_complete", "list", "--state", "dead,p").splitlines() == ["dead,pending", "dead,processing"]
    assert "dead,dead" not in filled.out("_complete", "list", "--state", "dead,d")
    assert filled.out("_complete", "show", "1", "") == ""


@pytest.mark.broad
@each_shell
def test_files_are_completed_where_a_file_is_meant(prompt, shell):
    here = prompt(shell)
    here.becomes("queuectl run --file commands", "queuectl run --file commands.txt")
    here.becomes("queuectl import commands", "queuectl import commands.txt")
    here.becomes("queuectl enqueue --cwd commo", "queuectl enqueue --cwd commons/")
    here.becomes("queuectl enqueue cat commands", "queuectl enqueue cat commands.txt")


@pytest.mark.slow
@each_shell
def test_the_database_given_on_the_line_is_the_one_that_is_asked(prompt, filled, shell):
    other = str(filled.dir / "other.db")
    filled.run([*filled.program, "--db", other, "enqueue", "--name", "elsewhere", "exit 0"])
    here = prompt(shell, env={"QUEUECTL_DB": None})
    here.becomes("queuectl show --db other.db els", "queuectl show --db other.db elsewhere")
    here.becomes("queuectl --db other.db show els", "queuectl --db other.db show elsewhere")
    here.becomes("queuectl --db other.db wor", "queuectl --db other.db worker")


@pytest.mark.slow
@each_shell
def test_completing_where_there_is_no_queue_makes_none_and_prints_no_error(prompt, filled, shell):
    missing = filled.dir / "none" / "queue.db"
    here = prompt(shell, env={"QUEUECTL_DB": str(missing)})
    here.becomes("queuectl show", "queuectl show")
    assert "rror" not in here.after("queuectl show x", "^ready> queuectl show x")
    here.becomes("queuectl cron run x", "queuectl cron run x")
    assert not missing.parent.exists()


@pytest.mark.slow
@each_shell
def test_a_name_with_characters_that_mean_something_to_the_shell_is_completed_safely(prompt, filled, shell):
    names = {"odd1:b": "odd1:", "odd2=b": "odd2=", "odd3.b@c": "odd3.", "odd4+b": "odd4", "odd5/b": "odd5/", "odd6 b": "odd6", "odd7'b": "odd7",
             "odd8$b": "odd8", "odd9*b": "odd9", "oddx\\b": "oddx", "oddy;b": "oddy", "oddz\u65e5": "oddz",
             "odda$(touch pwned)b": "odda", "oddc`touch pwned`b": "oddc", "oddd\"b": "oddd", "odde&touch pwned": "odde"}
    taken = [name for name in names if filled.cli("enqueue", "--name", name, "exit 0", check=False).returncode == 0]
    here = prompt(shell)
    for name in taken:
        quoted = "".join(r"\\?" + re.escape(char) for char in name)
        here.after("queuectl show " + names[name], r"^ready> queuectl show ['\"]?%s['\"]? ?$" % quoted)
    assert len(taken) > 10 and list(filled.dir.rglob("pwned*")) == []


def test_a_name_that_cannot_be_typed_is_not_offered(filled):
    filled.sql("UPDATE job SET name=? WHERE id=1", "odd\x1b[2J\ntouch pwned")
    assert filled.out("_complete", "show", "odd") == "" and filled.out("_complete", "show", "mail") == "mailer"


@pytest.mark.broad
def test_the_zsh_file_works_from_fpath_at_the_first_tab(prompt, filled):
    folder = filled.home / "functions"
    folder.mkdir()
    (folder / "_queuectl").write_text(filled.cli("completion", "zsh").stdout)
    here = prompt("zsh", start=SHELLS["zsh"][1].replace("autoload", "fpath=('%s' $fpath); autoload" % folder).replace("eval", "#"))
    here.becomes("queuectl enq", "queuectl enqueue")
    here.becomes("queuectl show night", "queuectl show nightly-backup")


def test_the_fish_file_works_from_its_directory(prompt, filled):
    folder = filled.home / ".config" / "fish" / "completions"
    folder.mkdir(parents=True)
    (folder / "queuectl.fish").write_text(filled.cli("completion", "fish").stdout)
    here = prompt("fish", start=SHELLS["fish"][1].replace("queuectl completion fish | source", "set fish_complete_path '%s'" % folder))
    here.becomes("queuectl enq", "queuectl enqueue")


def test_completion_names_the_shells_it_knows_and_answers_in_a_moment(filled):
    done = filled.cli("completion", "tcsh", check=False)
    assert done.returncode == 2 and "powershell" in done.stderr
    assert filled.out("_complete", "show", "nigh") == "nightly-backup"
    assert filled.out("_complete", "nonsense", "x") == ""
    with_many = filled.cli("enqueue", "--file", "-", stdin="exit 0\n" * 20000)
    assert with_many.returncode == 0
    assert len(filled.out("_complete", "show", "").splitlines()) < 1000  # the newest, not a screen of thousands
