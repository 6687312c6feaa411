"""The service on Ray Serve: one deployment with the routes, one with an encoder per replica."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import ray
import torch

from pipelines.cluster import session as cluster
from pipelines.errors import UserError
from pipelines.retrieval import devices
from pipelines.retrieval.devices import Place
from pipelines.service import encoders
from pipelines.service.desk import MAX_BYTES, Input
from pipelines.service.guard import Guard
from pipelines.service.owner import owned
from pipelines.service.plan import Plan, Settings, desk_of, encoding_of, plan_of
from pipelines.service.start import start

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import ServeInstanceDetails

log = logging.getLogger(__name__)
_INSTALL = 'pip install -c constraints.txt -e ".[serve]"'
_NAME = "crossreid"
_FORM = 2**20  # of a request beside its image


def application(plan: Plan, where: Place) -> Application:
    """The deployments, bound to each other; encoders run where they were given a place."""
    from ray import serve

    settings = plan.settings
    device = torch.device(where.device) if where.device else None
    autoscaling = {
        "min_replicas": settings.min_replicas,
        "max_replicas": max(settings.max_replicas, settings.min_replicas),
        "target_ongoing_requests": settings.max_batch,
    }

    class Encoder:
        def __init__(self) -> None:
            self._encoding = encoding_of(plan, device)

        @serve.batch(max_batch_size=settings.max_batch, batch_wait_timeout_s=settings.batch_wait_s)
        async def batched(self, asked: list[Input]) -> list[np.ndarray]:
            return self._encoding.embed(asked)

        async def embed(self, asked: Input) -> np.ndarray:
            return await self.batched(asked)

    def routes() -> Guard:
        from pipelines.service.app import build

        asked = encoders.Encoders(serve.get_deployment_handle(encoders.NAME, _NAME), _NAME)
        return build(
            desk_of(plan),
            asked.embed,
            trouble=asked.trouble,
            token=settings.token,
            max_bytes=MAX_BYTES + _FORM,
        )

    @serve.ingress(routes)
    class Routes:
        def __init__(self, encoder: object) -> None:
            self._encoder = encoder

    encoding = serve.deployment(
        name=encoders.NAME,
        autoscaling_config=autoscaling,
        max_ongoing_requests=4 * settings.max_batch,
        ray_actor_options={"num_gpus": where.gpu_share, "num_cpus": 1},
    )(Encoder)
    front = serve.deployment(
        name="routes", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}
    )(Routes)
    return front.bind(encoding.bind())


@contextmanager
def running(settings: Settings, *, ray_address: str | None = None) -> Iterator[None]:
    """Serve while the block runs, on a Ray of its own or one that is there.

    A Ray Serve that runs there already goes on afterwards, with what else it serves. A service
    whose command is gone, killed for one, is replaced.

    Raises:
        UserError: see `Settings.check`, `Settings.check_port`, `plan_of`, `owned`,
            `_require_place_in`, `devices.place`, `start`; Ray Serve is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        from ray import serve
    except ImportError as error:
        raise UserError(f"serving needs Ray Serve and FastAPI: {_INSTALL}") from error
    settings.check()
    if ray_address in (None, "local") and not ray.is_initialized():
        settings.check_port()  # nothing of ours can listen there: no Ray is begun for it
    plan = plan_of(settings)
    own = plan.config.ray.model_copy(update={"address": ray_address})
    config = plan.config.model_copy(update={"ray": own})
    with cluster.session(config), owned(_NAME):
        there = _running_serve()
        if there is not None:
            _require_place_in(there, settings)
            if _NAME in there.applications:
                serve.delete(_NAME)  # a command that is gone: its encoders hold what ours need
        else:
            settings.check_port()
        where = devices.place(
            config,
            "serving",
            gpu=settings.gpu,
            at_least=settings.min_replicas,
            at_most=max(settings.min_replicas, settings.max_replicas),
        )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": settings.host, "port": settings.port})
        try:
            start(application(plan, where), _NAME, settings.gallery)
            yield
        finally:
            _leave(began=there is None)


def _running_serve() -> ServeInstanceDetails | None:
    """What Ray Serve says of itself where it runs on the connected cluster."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeInstanceDetails

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else ServeInstanceDetails(**client.get_serve_details())


def _require_place_in(there: ServeInstanceDetails, settings: Settings) -> None:
    """Refuse a Ray Serve that listens elsewhere, or has another's application in our place.

    It has one host and port for all that it serves, and what is given anew is not heard. One of our
    name at our place is what a command of ours has left, since `owned` says that none lives.

    Raises:
        UserError: names what is there.
    """
    options = there.http_options
    listens = (options.host, options.port) if options else (None, None)
    if listens != (settings.host, settings.port):
        raise UserError(
            f"Ray Serve runs on this cluster already and listens on {listens[0]}:{listens[1]}, not "
            f"on {settings.host}:{settings.port}: give --host {listens[0]} --port {listens[1]}, or "
            "serve on a Ray of its own (unset RAY_ADDRESS)"
        )
    for name, app in there.applications.items():
        if name == _NAME and app.route_prefix in (None, "/"):
            log.warning("taking the place of a service whose command is gone")
        elif name == _NAME or app.route_prefix == "/":
            raise UserError(
                f"this cluster serves {name} at {app.route_prefix} already, which this service "
                f'would replace: end that one (its own command, or `serve.delete("{name}")` in '
                "Python), or serve on a Ray of its own (unset RAY_ADDRESS)"
            )


def _leave(*, began: bool) -> None:
    """End our application, and Ray Serve where we began it and nobody else has come."""
    from ray import serve

    others = sorted(set(serve.status().applications) - {_NAME})
    if began and not others:
        serve.shutdown()
        return
    serve.delete(_NAME)
    if began:
        log.warning("Ray Serve goes on, since it serves %s", ", ".join(others))


def wait() -> None:
    """Until the process is told to end."""
    threading.Event().wait()
