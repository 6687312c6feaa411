"""The encoders of a service, as its routes ask them: waiting ends, and /health says why."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.exceptions import RayActorError

from pipelines.service.desk import Input, UnavailableError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)
NAME = "encoder"
_ANSWER_S = 60.0  # of a request, in which a replica that died can start again
_STATUS_S = 5.0
_NONE = "no encoder runs: the log of the service says why"


class Encoders:
    """The deployment that embeds.

    Args:
        handle: of it.
        application: that it belongs to.
    """

    def __init__(self, handle: DeploymentHandle[Any], application: str) -> None:
        self._handle, self._application = handle, application

    async def embed(self, asked: Input) -> np.ndarray:
        """(D,) unit row.

        Raises:
            UnavailableError: no answer came in time.
        """
        try:
            return await asyncio.wait_for(self._embed(asked), _ANSWER_S)
        except TimeoutError as error:
            busy = f"no encoder was free within {_ANSWER_S:.0f} s: ask again later"
            raise UnavailableError(await self.trouble() or busy) from error

    async def _embed(self, asked: Input) -> np.ndarray:
        vector: np.ndarray
        try:
            vector = await self._handle.embed.remote(asked)
        except RayActorError:  # embedding changes nothing: another replica does it
            vector = await self._handle.embed.remote(asked)
        return vector

    async def trouble(self) -> str:
        """Why nothing is embedded now, for a client; "" where an encoder runs.

        What Ray says of it goes to the log: it may name places of the server.
        """
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._trouble), _STATUS_S)
        except Exception as error:  # of Serve's controller, which is gone or starts again
            log.error("nobody says whether an encoder runs: %s", error or type(error).__name__)
            return _NONE

    def _trouble(self) -> str:
        from ray import serve

        app = serve.status().applications.get(self._application)
        encoders = None if app is None else app.deployments.get(NAME)
        states = {} if encoders is None else encoders.replica_states
        if any(count for state, count in states.items() if state == "RUNNING"):
            return ""
        log.error("no encoder runs: %s", "it was ended" if encoders is None else encoders.message)
        return _NONE
