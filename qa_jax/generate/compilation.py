"""Compiling once: programs by shape, JAX's persistent cache, and a count of compilations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax

from qa_jax.parallel import current_platform
from qa_jax.paths import cache_home
from qa_jax.typing import PyTree

_events: dict[str, int] = {}


def _count(event: str, *_: object, **__: object) -> None:
    _events[event] = _events.get(event, 0) + 1


jax.monitoring.register_event_listener(_count)
jax.monitoring.register_event_duration_secs_listener(_count)


def num_compilations() -> int:
    """Programs that XLA compiled in this process; those read from the persistent cache do not
    count."""
    built = _events.get("/jax/core/compile/backend_compile_duration", 0)
    return built - _events.get("/jax/compilation_cache/cache_hits", 0)


def use_persistent_cache() -> None:
    """Keeps compiled programs in the user's cache directory, unless JAX is configured otherwise.

    JAX_COMPILATION_CACHE_DIR names another directory, JAX_ENABLE_COMPILATION_CACHE=false none.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_home() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class Program:
    """A jitted function whose programs are compiled when they are asked for, in any thread.

    Args:
        function: its first argument has the same shapes in all calls.
        donate: index of a donated argument.
        static: names of keyword arguments that are part of the program.
    """

    def __init__(
        self,
        function: Callable[..., PyTree],
        donate: int | None = None,
        static: tuple[str, ...] = (),
    ) -> None:
        self.function = function
        donated = () if donate is None else (donate,)
        self.jitted = jax.jit(function, donate_argnums=donated, static_argnames=static)
        self._compiled: dict[object, Future[jax.stages.Compiled]] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: PyTree, **static: object) -> Any:
        return self.compiled(*args, **static)(*args)

    def compiled(self, *args: PyTree, **static: object) -> jax.stages.Compiled:
        """The program for arguments of these shapes; waits if another thread is compiling it."""
        leaves, structure = jax.tree.flatten(args[1:])
        key = structure, tuple((x.shape, x.dtype) for x in leaves), tuple(static.values())
        with self._lock:
            future = self._compiled.get(key)
            if is_new := future is None:
                future = self._compiled[key] = Future()
        if is_new:
            try:
                lowered = self.jitted.lower(*args, **static)
                future.set_result(lowered.compile(compiler_options=_compiler_options(args[0])))
            except BaseException as error:
                self._compiled.pop(key)
                future.set_exception(error)
        return future.result()


def _compiler_options(params: PyTree) -> dict[str, str | bool] | None:
    """On a CPU, XLA converts narrow parameters outside loops: those of all layers at once."""
    is_narrow = any(x.dtype.itemsize < 4 for x in jax.tree.leaves(params))
    if current_platform() == "cpu" and is_narrow:
        return {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
    return None
