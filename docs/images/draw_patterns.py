#!/usr/bin/env python3
"""Draws patterns.svg, the picture of the README: which earlier positions a position attends to, on a 6x6 image
(upper row, for one query) and as connectivity matrices (lower row), after figure 3 of the paper.

    python3 docs/images/draw_patterns.py > docs/images/patterns.svg
"""

SIDE, L, C, QUERY = 6, 6, 1, 26  # a 6x6 image, stride l, summary columns c, the query shown
N = SIDE * SIDE

# The definitions of Sec. 4.2 and 4.3. 1: first head, 2: second head, 0: not attended to.
PATTERNS = {
    "dense": lambda i, j: 1 if j <= i else 0,
    "strided": lambda i, j: 0 if j > i else 1 if i - j < L else 2 if (i - j) % L == 0 else 0,
    "fixed": lambda i, j: 0 if j > i else 1 if i // L == j // L else 2 if j % L >= L - C else 0,
}
QUERY_COLOR, COLORS = "#16324f", {0: "#eef1f4", 1: "#2a7fb8", 2: "#9ccbe8"}
CELL, SMALL, PANEL, MARGIN = 14, 6, 240, 12


paths = {}  # color -> squares


def square(x, y, size, color):
    paths.setdefault(color, []).append(f"M{x:g} {y:g}h{size - 1}v{size - 1}h{1 - size}z")


labels = []
for panel, (name, attends) in enumerate(PATTERNS.items()):
    x0, y0 = MARGIN + panel * PANEL, 34
    labels.append(f'<text x="{x0 + N * SMALL / 2}" y="22" text-anchor="middle">{name}</text>')
    left = x0 + (N * SMALL - SIDE * CELL) / 2
    for j in range(N):
        color = QUERY_COLOR if j == QUERY else COLORS[attends(QUERY, j)]
        square(left + j % SIDE * CELL, y0 + j // SIDE * CELL, CELL, color)
    y0 += SIDE * CELL + 14
    for i in range(N):
        for j in range(N):
            color = QUERY_COLOR if i == j else COLORS[attends(i, j)]
            square(x0 + j * SMALL, y0 + i * SMALL, SMALL, color)

width, height = 2 * MARGIN + 2 * PANEL + N * SMALL, 34 + SIDE * CELL + 14 + N * SMALL + MARGIN
print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
      'font-family="sans-serif" font-size="15" fill="#16324f">')
print(f'<rect width="{width}" height="{height}" fill="#ffffff"/>')
print("\n".join(labels))
for color, squares in paths.items():
    print(f'<path fill="{color}" d="{"".join(squares)}"/>')
print("</svg>")
