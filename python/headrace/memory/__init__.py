# SPDX-License-Identifier: Apache-2.0
"""Where streams keep their keys and values: the page pool, page tables, views, and regions."""

from .archive import Archive, ArchiveStore, InMemory, OnDisk, Shelf, Spill
from .cut import cut, fresh_pages
from .edit import Edit
from .heads import HeadCache, budgets
from .parking import Parked
from .pool import PagePool
from .recall import Asked, Recalled, by_mass, by_score
from .regions import UNLIMITED, Plan, Region, Sink, Union, Window
from .sampled import Sampled, by_sample, sampled
from .table import Lease, Page, Table
from .view import View

__all__ = [
    "UNLIMITED",
    "Archive",
    "ArchiveStore",
    "Asked",
    "Edit",
    "HeadCache",
    "InMemory",
    "Lease",
    "OnDisk",
    "Page",
    "PagePool",
    "Parked",
    "Plan",
    "Recalled",
    "Region",
    "Sampled",
    "Shelf",
    "Sink",
    "Spill",
    "Table",
    "Union",
    "View",
    "Window",
    "budgets",
    "by_mass",
    "by_sample",
    "by_score",
    "cut",
    "fresh_pages",
    "sampled",
]
