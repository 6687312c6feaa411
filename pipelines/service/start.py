"""Replicas that start, on whichever nodes Ray places them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.errors import UserError

if TYPE_CHECKING:
    from ray.serve import Application


def start(bound: Application, name: str, gallery: str) -> None:
    """Return once an application of Ray Serve answers at /.

    Args:
        bound: its deployments.
        name: of the application.
        gallery: folder or URI that the replicas open.

    Raises:
        UserError: they did not start. The gallery and the encoder were opened here before, so it
            names what another node may lack.
    """
    from ray import serve

    try:
        serve.run(bound, name=name, route_prefix="/")
    except RuntimeError as error:
        raise UserError(
            f"the service did not start: {error}\n"
            f"Every node must see the gallery {gallery} and the checkpoint of its encoder under "
            "the same path or URI, and have the package with [serve]: put them on a shared file "
            "system or into a bucket, or serve on a Ray of its own (unset RAY_ADDRESS)"
        ) from error
