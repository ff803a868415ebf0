"""The plugin registry: losses, advantages, rewards and judges by name, `module:function` or `file.py:function`.

A plugin is a plain function. Three ways lead to it, and none of them needs a subclass or a fork:

- `@register("dpo_loss", "my_loss")` above the function, then `loss_type="my_loss"`;
- a reference, `loss_type="package.module:function"` or `loss_type="path/to/file.py:function"`;
- an entry point in the group `rlhf_ext.dpo_loss` of an installed package, then its name.
"""

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PluginError(ValueError):
    """A plugin cannot be registered, found or called; the message says what to do."""


@dataclass(frozen=True)
class PluginKind:
    """How plugins of one kind are called: `fn(*positional, **keywords, **loss_kwargs)`."""

    positional: tuple[str, ...]
    keywords: tuple[str, ...]
    builtin_module: str | None  # imported on first use, so that `import rlhf_ext` stays cheap

    @property
    def call(self) -> str:
        """The signature as a user would write it."""
        keywords = ["*", *self.keywords, "**kwargs"] if self.keywords else []
        return f"fn({', '.join([*self.positional, *keywords])})"


KINDS: dict[str, PluginKind] = {
    "preference_loss": PluginKind(("chosen_rewards", "rejected_rewards"), ("extras",), "rlhf_ext.losses.preference"),
    "dpo_loss": PluginKind(("batch",), ("beta",), "rlhf_ext.losses.dpo"),
    "advantage": PluginKind(("rewards", "values", "mask"), ("gamma", "lam"), "rlhf_ext.advantages"),
    "reward": PluginKind(
        (), ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"), None
    ),
    "judge": PluginKind(("prompts", "completions_a", "completions_b"), (), None),
}

_registry: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as plugin `name` of `kind`, and return it unchanged.

    Args:
        kind: One of `KINDS`.
        name: The name users write in a configuration. It may not hold a colon, which marks a reference.

    Raises:
        PluginError: Unknown kind, unusable name, a name that is taken, or a signature that cannot be called.
    """
    spec = _kind(kind)
    if not name or ":" in name:
        raise PluginError(f"{kind} name {name!r} is not usable: give it at least one character and no ':'.")

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        check_signature(kind, name, function)
        taken = _registry[kind].get(name)
        if taken is None and _origin(function)[0] != spec.builtin_module:
            taken = _load_builtins(kind).get(name)
        # Running a notebook cell or a file again defines the same function anew: that is no conflict.
        if taken is not None and _origin(taken) != _origin(function):
            raise PluginError(
                f"{kind} {name!r} is already registered by {':'.join(_origin(taken))}. Choose another name for yours."
            )
        _registry[kind][name] = function
        return function

    return decorator


def get_plugin(kind: str, ref: str, kwargs: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Return the plugin that `ref` names, with its signature checked.

    Args:
        kind: One of `KINDS`.
        ref: A registered name, an entry point's name, `"package.module:function"` or `"path/to/file.py:function"`.
        kwargs: Extra keywords it will be called with. They are checked too.

    Raises:
        PluginError: Nothing by that name, a module or file that cannot be imported, or a signature that does not fit.
    """
    _kind(kind)
    function = _load_reference(kind, ref) if ":" in ref else _load_name(kind, ref)
    check_signature(kind, ref, function, kwargs)
    return function


def list_plugins(kind: str) -> list[str]:
    """Return the sorted names that `get_plugin` knows for `kind`: built-in, registered and from entry points."""
    _kind(kind)
    return sorted({*_load_builtins(kind), *(entry.name for entry in _entry_points(kind))})


def find_registered(kind: str, name: str) -> Callable[..., Any] | None:
    """Return the built-in or registered plugin of a name; None if there is none, or only an entry point."""
    _kind(kind)
    return _load_builtins(kind).get(name)


def find_entry_points(kind: str, name: str) -> list[str]:
    """Return the references of the entry points of a name, each with the package that offers it."""
    entries = {(entry.value, entry.dist.name if entry.dist else "?") for entry in _entry_points(kind).select(name=name)}
    return [f"package {package} ({value})" for value, package in sorted(entries)]


def accepted_keywords(function: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `names` that `function` takes as keywords."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(names)
    by_keyword = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return {name: value for name, value in names.items() if name in by_keyword}


def _kind(kind: str) -> PluginKind:
    if kind not in KINDS:
        raise PluginError(f"Unknown plugin kind {kind!r}. The kinds are: {', '.join(KINDS)}.")
    return KINDS[kind]


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    return getattr(function, "__module__", "?"), getattr(function, "__qualname__", type(function).__qualname__)


def _load_builtins(kind: str) -> dict[str, Callable[..., Any]]:
    if KINDS[kind].builtin_module:
        importlib.import_module(KINDS[kind].builtin_module)  # registers its functions on import
    return _registry[kind]


def _entry_points(kind: str) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=f"rlhf_ext.{kind}")


def _load_name(kind: str, name: str) -> Callable[..., Any]:
    registered = find_registered(kind, name)
    sources = find_entry_points(kind, name)
    if registered is not None:
        sources.insert(0, ":".join(_origin(registered)))
    if len(sources) > 1:
        raise PluginError(
            f"{kind} {name!r} is offered by {' and '.join(sources)}. "
            "Write the one you mean as 'module:function', or uninstall the other."
        )
    if registered is not None:
        return registered
    if not sources:
        known = list_plugins(kind)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise PluginError(
            f"Unknown {kind} {name!r}.{hint} Known names: {', '.join(known) or 'none'}. A function of your own is "
            "written as 'package.module:function' or 'path/to/file.py:function'."
        )
    try:
        return _entry_points(kind)[name].load()
    except Exception as error:
        raise PluginError(f"{kind} {name!r} from {sources[0]} cannot be loaded: {error!r}.") from error


def _load_reference(kind: str, ref: str) -> Callable[..., Any]:
    source, _, attribute = ref.rpartition(":")
    module = _import_file(kind, source) if source.endswith(".py") else _import_module(kind, ref, source)
    try:
        function = module
        for part in attribute.split("."):
            function = getattr(function, part)
    except AttributeError:
        functions = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise PluginError(
            f"{kind} {ref!r}: {source} has no {attribute!r}. Its functions are: {', '.join(functions) or 'none'}."
        ) from None
    return function


def _import_module(kind: str, ref: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing_itself = error.name is not None and (name == error.name or name.startswith(error.name + "."))
        if not missing_itself:
            raise PluginError(f"{kind} {ref!r}: importing {name} failed: {error}.") from error
        file = Path(name.replace(".", "/") + ".py")
        hint = (
            f"write '{file}:{ref.rpartition(':')[2]}'" if file.is_file() else "install it, or write 'file.py:function'"
        )
        raise PluginError(f"{kind} {ref!r}: there is no module {name!r} on the import path; {hint}.") from error
    except Exception as error:
        raise PluginError(f"{kind} {ref!r}: importing {name} failed: {error!r}.") from error


def _import_file(kind: str, source: str) -> Any:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"{kind} file {source!r} does not exist (looked at {path}).")
    # One module per file, however often and from wherever it is named, so that its decorators run once.
    name = f"rlhf_ext_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # as `python file.py` does, so that it finds the modules beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"{kind} file {source!r} cannot be imported: {error!r}.") from error
    finally:
        with suppress(ValueError):
            sys.path.remove(str(path.parent))
    return module


def check_signature(kind: str, ref: str, function: Any, kwargs: Mapping[str, Any] | None = None) -> None:
    """Check that `function` can be called as the kind says.

    Args:
        kind: One of `KINDS`.
        ref: What to call it.
        function: What is to be called.
        kwargs: All further keywords it will be called with; None leaves open which ones that will be.

    Raises:
        PluginError: It is no function, or the signature does not fit.
    """
    spec = KINDS[kind]
    if not callable(function) or inspect.isclass(function):
        raise PluginError(f"{kind} {ref!r} is a {type(function).__name__}; it must be a function {spec.call}.")
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # some functions written in C have none
        raise PluginError(f"{kind} {ref!r} has no readable signature; wrap it in a function {spec.call}.") from error
    given = dict.fromkeys(kwargs or {})
    unknown = set(given) - set(accepted_keywords(function, given)) | set(given) & {*spec.positional, *spec.keywords}
    if unknown:
        own = set(signature.parameters) - {*spec.positional, *spec.keywords}
        own -= {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}
        raise PluginError(
            f"{kind} {ref!r} does not take the keyword {', '.join(map(repr, sorted(unknown)))}. "
            f"It takes: {', '.join(sorted(own)) or 'none of its own'}."
        )
    if kwargs is None:
        named = [p for p in signature.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        leading = len(spec.positional)  # these are passed by position
        own = [p.name for i, p in enumerate(named) if i >= leading or p.kind is p.KEYWORD_ONLY]
        given = dict.fromkeys(set(own) - set(spec.keywords))
    try:
        signature.bind(*spec.positional, **dict.fromkeys(spec.keywords), **given)
    except TypeError as error:
        raise PluginError(
            f"{kind} {ref!r} has the signature {signature}, but is called as {spec.call}: {error}. Change the "
            "signature, or set the missing keyword in `loss_kwargs`."
        ) from None
