# SPDX-License-Identifier: Apache-2.0
"""Where streams keep their keys and values: the page pool, page tables, views, and regions."""

from .cut import cut, fresh_pages
from .edit import Edit
from .parking import Parked
from .pool import PagePool
from .regions import UNLIMITED, Plan, Region, Sink, Union, Window
from .table import Lease, Page, Table
from .view import View

__all__ = [
    "UNLIMITED",
    "Edit",
    "Lease",
    "Page",
    "PagePool",
    "Parked",
    "Plan",
    "Region",
    "Sink",
    "Table",
    "Union",
    "View",
    "Window",
    "cut",
    "fresh_pages",
]
