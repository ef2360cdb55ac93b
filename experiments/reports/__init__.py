"""What people look at: tables on the terminal, pictures, and one page for a browser.

tables.py         rows of points as tables on the terminal
canvas.py         what every picture shares: the door to matplotlib, size, panels two a row, title, legend, saving
direct_labels.py  labels beside the ends of curves, clear of each other and of the frame
pictures.py       the pictures: a curve, several runs, losses over a training, published points, every head's map
page.py           tradeoff.html: fills page.html, page.css, plot.js and page.js with the runs
published.py      the study's own points, which stay on axes of their own
compared.py       the published systems and our models, counted and timed by one program
"""
