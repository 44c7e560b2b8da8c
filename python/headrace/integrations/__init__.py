# SPDX-License-Identifier: Apache-2.0
"""headrace inside other libraries' models. Nothing here is imported by `import headrace`, and no
other library by this package alone.
"""
