"""The registry: every way to name a plugin, and every mistake one can make with it."""

import importlib.metadata
import sys

import pytest

from rlhf_ext import get_plugin, list_plugins, plugins, register
from rlhf_ext.plugins import PluginError

pytestmark = pytest.mark.usefixtures("own_registry")


def loss(batch, *, beta, scale=1.0):
    return scale * beta * batch


@pytest.fixture
def loss_file(tmp_path):
    path = tmp_path / "my_losses.py"
    path.write_text("CALLS = []\nCALLS.append(1)\ndef my_loss(batch, *, beta, scale=1.0):\n    return scale * batch\n")
    return path


def test_register_then_get_by_name():
    assert register("dpo_loss", "mine")(loss) is loss
    assert get_plugin("dpo_loss", "mine") is loss
    assert "mine" in list_plugins("dpo_loss")


def test_built_in_losses_are_listed():
    wanted = {"sigmoid", "average_logp", "cdpo", "odpo", "simpo", "ipo", "hinge"}
    assert wanted <= set(list_plugins("dpo_loss"))


def test_module_reference():
    from rlhf_ext.losses.dpo import simpo

    assert get_plugin("dpo_loss", "rlhf_ext.losses.dpo:simpo") is simpo


def test_file_reference_runs_the_file_once(loss_file):
    function = get_plugin("dpo_loss", f"{loss_file}:my_loss")
    assert function(3.0, beta=0.1) == 3.0
    assert get_plugin("dpo_loss", f"{loss_file}:my_loss") is function
    assert sys.modules[function.__module__].CALLS == [1]


def test_file_reference_relative_and_with_home(loss_file, monkeypatch):
    function = get_plugin("dpo_loss", f"{loss_file}:my_loss")
    monkeypatch.chdir(loss_file.parent)
    assert get_plugin("dpo_loss", "my_losses.py:my_loss") is function
    monkeypatch.setenv("HOME", str(loss_file.parent))
    assert get_plugin("dpo_loss", "~/my_losses.py:my_loss") is function


def test_file_may_import_the_module_beside_it(tmp_path):
    (tmp_path / "scales_beside_it.py").write_text("SCALE = 3.0\n")
    path = tmp_path / "uses_it.py"
    path.write_text("from scales_beside_it import SCALE\ndef f(batch, *, beta):\n    return SCALE * batch\n")
    before = list(sys.path)
    assert get_plugin("dpo_loss", f"{path}:f")(2.0, beta=0.1) == 6.0
    assert sys.path == before


def test_file_that_registers_by_decorator_can_be_named_either_way(tmp_path):
    path = tmp_path / "decorated.py"
    path.write_text(
        "from rlhf_ext import register\n@register('dpo_loss', 'decorated')\ndef f(batch, *, beta):\n    return batch\n"
    )
    assert get_plugin("dpo_loss", f"{path}:f") is get_plugin("dpo_loss", "decorated")


def offer_entry_point(monkeypatch, name, value):
    entry = importlib.metadata.EntryPoint(name, value, "rlhf_ext.dpo_loss")
    monkeypatch.setattr(
        plugins,
        "_entry_points",
        lambda kind: importlib.metadata.EntryPoints([entry] if kind == "dpo_loss" else []),
    )


def test_entry_point(monkeypatch):
    offer_entry_point(monkeypatch, "theirs", "rlhf_ext.losses.dpo:hinge")
    assert "theirs" in list_plugins("dpo_loss")
    assert get_plugin("dpo_loss", "theirs") is get_plugin("dpo_loss", "hinge")


def test_entry_point_that_fails_to_load_is_named(monkeypatch):
    offer_entry_point(monkeypatch, "theirs", "no_such_package:loss")
    with pytest.raises(PluginError, match=r"'theirs' from package .*no_such_package"):
        get_plugin("dpo_loss", "theirs")


def test_entry_point_with_a_built_in_name_is_ambiguous(monkeypatch):
    offer_entry_point(monkeypatch, "simpo", "their_package:simpo")
    with pytest.raises(
        PluginError, match=r"'simpo' is offered by rlhf_ext.losses.dpo:simpo and package .*their_package"
    ):
        get_plugin("dpo_loss", "simpo")


def test_duplicate_name():
    register("dpo_loss", "mine")(loss)

    def other(batch, *, beta):
        return batch

    with pytest.raises(PluginError, match=r"'mine' is already registered by .*:loss.* another name"):
        register("dpo_loss", "mine")(other)


def test_built_in_name_is_taken():
    with pytest.raises(PluginError, match=r"'simpo' is already registered by rlhf_ext.losses.dpo:simpo"):
        register("dpo_loss", "simpo")(loss)


def test_defining_the_same_function_again_replaces_it():
    def define(scale):
        def cell(batch, *, beta):
            return scale * batch

        return register("dpo_loss", "cell")(cell)

    define(1.0)
    newer = define(2.0)
    assert get_plugin("dpo_loss", "cell") is newer


@pytest.mark.parametrize("name", ["", "a:b"])
def test_unusable_name(name):
    with pytest.raises(PluginError, match="not usable"):
        register("dpo_loss", name)(loss)


def test_unknown_kind():
    for call in (lambda: register("dpo", "x"), lambda: get_plugin("dpo", "x"), lambda: list_plugins("dpo")):
        with pytest.raises(PluginError, match=r"Unknown plugin kind 'dpo'.*preference_loss, dpo_loss, advantage"):
            call()


def test_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        PluginError, match=r"Unknown dpo_loss 'simpoo'. Did you mean 'simpo'\? Known names: average_logp"
    ):
        get_plugin("dpo_loss", "simpoo")


def test_missing_file():
    with pytest.raises(PluginError, match=r"'nowhere.py' does not exist \(looked at /"):
        get_plugin("dpo_loss", "nowhere.py:f")


def test_file_that_does_not_compile(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(PluginError, match=r"broken.py' cannot be imported: SyntaxError"):
        get_plugin("dpo_loss", f"{tmp_path}/broken.py:f")


def test_missing_function_lists_those_there_are(loss_file):
    with pytest.raises(PluginError, match=r"has no 'your_loss'. Its functions are: my_loss"):
        get_plugin("dpo_loss", f"{loss_file}:your_loss")


def test_missing_module_points_to_the_file_of_that_name(loss_file, monkeypatch):
    monkeypatch.chdir(loss_file.parent)
    with pytest.raises(PluginError, match=r"no module 'my_losses' .* write 'my_losses.py:my_loss'"):
        get_plugin("dpo_loss", "my_losses:my_loss")


def test_module_whose_own_import_fails(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"importing needs_more failed.*not_installed_here"):
        get_plugin("dpo_loss", "needs_more:f")


def test_not_a_function(loss_file):
    with pytest.raises(PluginError, match=r"is a list; it must be a function fn\(batch, \*, beta, \*\*kwargs\)"):
        get_plugin("dpo_loss", f"{loss_file}:CALLS")


@pytest.mark.parametrize(
    "bad",
    [
        lambda batch: batch,
        lambda *, beta: beta,
        lambda: None,
    ],
)
def test_wrong_signature(bad):
    with pytest.raises(PluginError, match=r"called as fn\(batch, \*, beta, \*\*kwargs\)"):
        register("dpo_loss", "bad")(bad)


@pytest.mark.parametrize(
    "good",
    [
        lambda batch, beta: batch,
        lambda batch, *, beta, **kwargs: batch,
        lambda b, *, beta, scale: b,
        lambda batch, beta, scale: batch,
        lambda *args, **kwargs: args,
    ],
)
def test_signatures_that_fit(good):
    assert register("dpo_loss", "good")(good) is good


def test_keyword_it_does_not_take():
    register("dpo_loss", "mine")(loss)
    with pytest.raises(PluginError, match=r"'mine' does not take the keyword 'sclae'. It takes: scale"):
        get_plugin("dpo_loss", "mine", {"sclae": 2.0})


def test_signature_of_another_kind():
    register("dpo_loss", "bad")(lambda chosen, rejected, *, beta: chosen)
    with pytest.raises(PluginError, match="missing a required argument: 'rejected'"):
        get_plugin("dpo_loss", "bad", {})


def test_required_keyword_that_is_missing():
    register("dpo_loss", "needy")(lambda batch, *, beta, scale: batch)
    assert get_plugin("dpo_loss", "needy", {"scale": 1.0})
    with pytest.raises(PluginError, match=r"missing a required .*'scale'.*loss_kwargs"):
        get_plugin("dpo_loss", "needy", {})


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("preference_loss", lambda chosen_rewards, rejected_rewards, *, extras: chosen_rewards),
        ("advantage", lambda rewards, values, mask, *, gamma, lam: (rewards, values)),
        ("reward", lambda completions, **kwargs: [0.0] * len(completions)),
        ("judge", lambda prompts, completions_a, completions_b: [0.5] * len(prompts)),
    ],
)
def test_the_other_kinds(kind, function):
    register(kind, "mine")(function)
    assert get_plugin(kind, "mine") is function
    with pytest.raises(PluginError, match="called as"):
        register(kind, "bad")(lambda batch, *, beta: batch)
