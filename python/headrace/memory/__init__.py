# SPDX-License-Identifier: Apache-2.0
"""Where streams keep their keys and values: the page pool, page tables, views, and regions."""

from .archive import Archive, ArchiveStore, InMemory, OnDisk, Shelf, Spill
from .by_mass import by_mass, check_bound
from .choice import Held, Keep, Rest, Tagged, Then
from .cut import cut, fresh_pages
from .edit import Edit
from .fold import Fold, Folded, Folding
from .heads import HeadCache, budgets
from .kept import Kept, evict, held, most_pages
from .parking import Parked
from .placed import Placed
from .pool import PagePool
from .recall import Asked, Choose, Picked, Recalled, Told, by_score, stored, tokens_of, turned
from .regions import UNLIMITED, Coming, Plan, Region, Sink, Union, Window
from .sampled import Sampled, by_sample, sampled
from .table import Lease, Page, Table
from .view import View

__all__ = [
    "UNLIMITED",
    "Archive",
    "ArchiveStore",
    "Asked",
    "Choose",
    "Coming",
    "Edit",
    "Fold",
    "Folded",
    "Folding",
    "HeadCache",
    "Held",
    "InMemory",
    "Keep",
    "Kept",
    "Lease",
    "OnDisk",
    "Page",
    "PagePool",
    "Parked",
    "Picked",
    "Placed",
    "Plan",
    "Recalled",
    "Region",
    "Rest",
    "Sampled",
    "Shelf",
    "Sink",
    "Spill",
    "Table",
    "Tagged",
    "Then",
    "Told",
    "Union",
    "View",
    "Window",
    "budgets",
    "by_mass",
    "by_sample",
    "by_score",
    "check_bound",
    "cut",
    "evict",
    "fresh_pages",
    "held",
    "most_pages",
    "sampled",
    "stored",
    "tokens_of",
    "turned",
]
