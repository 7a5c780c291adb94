"""The order in which a pipeline works, and what comes of it: times, bubbles, what is held."""

from vlmc.partition.schedule.closed_forms import bubble_share, most_held, most_put_off
from vlmc.partition.schedule.orders import Action, Moments, Orders, moments, order, orders_of
from vlmc.partition.schedule.picture import timeline_svg
from vlmc.partition.schedule.simulation import IllegalOrder, simulate
from vlmc.partition.schedule.timeline import Timeline
from vlmc.runtime.parallel.plan_rules import refusal

__all__ = [
    "Action",
    "IllegalOrder",
    "Moments",
    "Orders",
    "Timeline",
    "bubble_share",
    "moments",
    "most_held",
    "most_put_off",
    "order",
    "orders_of",
    "refusal",
    "simulate",
    "timeline_svg",
]
