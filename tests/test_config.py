"""config: keys, values, and which job they hold for."""
from __future__ import annotations

import pytest

pytestmark = pytest.mark.core

DEFAULTS = {"max_retries": "3", "backoff_base": "2", "backoff_max": "1h", "timeout": "none", "kill_grace": "5s",
            "keep_finished": "7d", "log_limit": "64MiB", "max_crashes": "3"}


def same(shown, meant):
    """`7d` and `1w` are one duration."""
    return shown == meant or {shown, meant} in ({"7d", "1w"}, {"64MiB", "67108864"}, {"2", "2.0"}, {"5s", "5"})


@pytest.fixture(autouse=True)
def made(queue):
    """There is a queue to look at."""
    import queuectl
    queuectl.Store(str(queue.db)).close()


def test_every_setting_has_its_documented_default(queue):
    for key, value in DEFAULTS.items():
        assert same(queue.out("config", "get", key), value), key
    listed = queue.out("config", "list")
    for key in DEFAULTS:
        assert key in listed


def test_set_get_unset(queue):
    queue.cli("config", "set", "max_retries", "5")
    assert queue.out("config", "get", "max_retries") == "5"
    queue.cli("config", "unset", "max_retries")
    assert queue.out("config", "get", "max_retries") == "3"
    queue.cli("config", "unset", "max_retries")


def test_a_dash_is_an_underscore(queue):
    queue.cli("config", "set", "max-retries", "0")
    assert queue.out("config", "get", "max_retries") == queue.out("config", "get", "max-retries") == "0"
    queue.cli("config", "unset", "max-retries")
    assert queue.out("config", "get", "max_retries") == "3"


@pytest.mark.parametrize("raw, told", [("90", "90s"), ("90s", "90s"), ("1.5m", "90s"), ("2h", "2h"), ("7d", "7d"), ("none", "none")])
def test_durations_are_read_in_every_unit(queue, raw, told):
    import queuectl
    queue.cli("config", "set", "timeout", raw)
    shown = queue.out("config", "get", "timeout")
    assert queuectl.parse_optional_duration(shown) == queuectl.parse_optional_duration(told)


BAD = {"max_retries": ["banana", "-1", "1.5", "", "nan", "1e999", "99999999999999999999"],
       "backoff_base": ["banana", "-1", "nan", "inf"],
       "backoff_max": ["banana", "-1s", "1x", "nan", "inf", "1e400"],
       "timeout": ["banana", "0", "-5", "5 bananas"],
       "kill_grace": ["banana", "-1"],
       "keep_finished": ["banana", "-7d"],
       "log_limit": ["banana", "-1", "64XB"],
       "max_crashes": ["banana", "0", "-1"]}


@pytest.mark.parametrize("key", BAD)
def test_values_are_checked(queue, store, key):
    import queuectl
    for value in BAD[key]:
        with pytest.raises(queuectl.UserError):
            store.settings.set(key, value)
    done = queue.cli("config", "set", key, "banana", check=False)
    assert done.returncode == 2 and key in done.stderr and "banana" in done.stderr
    assert same(queue.out("config", "get", key), DEFAULTS[key])


def test_a_setting_holds_for_jobs_enqueued_afterwards_and_an_option_beats_it(queue):
    before = queue.enqueue("exit 0")
    queue.cli("config", "set", "max_retries", "5")
    after = queue.enqueue("exit 0")
    told = queue.enqueue("--max-retries", 1, "exit 0")
    assert [queue.job(job).max_retries for job in (before, after, told)] == [3, 5, 1]
    queue.cli("config", "set", "timeout", "10s")
    assert queue.job(queue.enqueue("exit 0")).timeout == 10
    assert queue.job(queue.enqueue("--timeout", "none", "exit 0")).timeout is None
    assert queue.job(after).timeout is None


def test_config_lives_in_the_database(queue):
    queue.cli("config", "set", "max_retries", "9")
    another = [*queue.program, "--db", str(queue.dir / "other.db")]
    queue.run([*another, "enqueue", "exit 0"])
    other = queue.run([*another, "config", "get", "max_retries"])
    assert other.stdout == "3\n"


def test_config_list_as_json_tells_every_key_and_value(queue):
    queue.cli("config", "set", "max_retries", "9")
    listed = queue.json("config", "list")
    values = listed if isinstance(listed, dict) else {row["key"]: row["value"] for row in listed}
    assert set(DEFAULTS) <= set(values)
    assert str(values["max_retries"]) == "9"


def test_one_setting_as_json_is_as_in_the_list(queue):
    queue.cli("config", "set", "timeout", "2m")
    for key in ("timeout", "max_retries", "shell"):
        assert queue.json("config", "get", key) == queue.json("config", "list")[key]
