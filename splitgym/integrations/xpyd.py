"""xPyD-proxy: which prefill and which decode instance serve a request.

Start the proxy by ``python -m splitgym.integrations.xpyd --config xpyd.yaml``, which registers the policy and then does
what ``xpyd`` does. In its YAML: ``scheduling: splitgym`` and ``splitgym: {config: router.yaml}``, a router's YAML file
whose engines have the instances' addresses: role prompt for prefill, token for decode, mixed for aggregated ones.

Tested with xpyd-proxy 1.8.0, running before emulated engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpyd import proxy
from xpyd.scheduler import Candidate, SchedulingContext, SchedulingPolicy, default_registry

from splitgym.integrations.chooser import Chooser
from splitgym.router.books import Booking

NAME = "splitgym"


class SplitgymPolicy(SchedulingPolicy):  # type: ignore[misc]  # the package is not there when types are checked
    """The proxy reserves a prefill and then a decode instance; the policy names both at the first.

    Args:
        config: the path of a router's YAML file.
        registry: of the proxy's instances.
    """

    def __init__(self, config: str, registry: Any = None) -> None:
        super().__init__(registry=registry)
        self.chooser = Chooser(config)
        self._bookings: dict[int, Booking] = {}  # by the identity of a reservation's context
        self._planned: tuple[tuple[Any, ...], Booking] | None = None  # whose decode instance is not yet reserved

    @classmethod
    def from_config(cls, *, config: str, registry: Any = None, **options: Any) -> SplitgymPolicy:
        """Made by the proxy; the rest of what it says of itself is in the file, too."""
        return cls(config, registry)

    def select_node(self, context: SchedulingContext, candidates: Sequence[Candidate]) -> str | None:
        """The address of the instance for this phase; the least busy one where the policy names none."""
        chooser = self.chooser
        addresses = self._by_machine([each.address for each in candidates])
        booking = None
        if context.role == "decode":
            planned, self._planned = self._planned, None
            if planned is not None and planned[0] == _request_of(context) and planned[1].token_machine in addresses:
                booking = planned[1]
        if booking is None:
            lengths = chooser.predicted(context.request_len)
            prompts = self._others("prefill", context) if context.role == "decode" else addresses
            tokens = self._others("decode", context) if context.role == "prefill" else addresses
            decision = chooser.choose(lengths, prompts, tokens)
            if decision is None:
                return min(candidates, key=lambda each: each.active_requests).address if candidates else None
            prompt_machine, token_machine = decision.prompt_machine, decision.token_machine
            booking = chooser.book(lengths, prompt_machine, prompt_machine if prompts is tokens else token_machine)
            if context.role == "prefill":
                self._planned = _request_of(context), booking
        self._bookings[id(context)] = booking
        return addresses[booking.token_machine if context.role == "decode" else booking.prompt_machine]

    def on_request_finished(self, context: SchedulingContext, address: str) -> None:
        """A reservation is given back."""
        booking = self._bookings.pop(id(context), None)
        if booking is None:
            return
        has_no_decode = self._planned is not None and self._planned[1] is booking
        if has_no_decode:
            self._planned = None
        if context.role == "prefill" and not has_no_decode:
            self.chooser.prompt_ended(booking)
        else:
            self.chooser.finished(booking)

    def _others(self, role: str, context: SchedulingContext) -> dict[int, str]:
        """The instances of the phase that is not being reserved."""
        if self.registry is None:
            return self._by_machine(self.chooser.names)
        return self._by_machine(self.registry.get_available_instances(role, context.model))

    def _by_machine(self, addresses: Sequence[str]) -> dict[int, str]:
        found = ((self.chooser.machine_of(address), address) for address in addresses)
        return {machine: address for machine, address in found if machine is not None}


def _request_of(context: SchedulingContext) -> tuple[Any, ...]:
    """What both contexts of a request have in common."""
    return context.model, context.request_len, context.prompt, context.session_id, context.user


default_registry.register(NAME, SplitgymPolicy)

if __name__ == "__main__":
    proxy.main()
