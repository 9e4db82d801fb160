"""What `cedm study` and `cedm report` are made of: the plan, running it, what the numbers say, and how it is shown.

plan → runner → results → analysis → charts, findings → page
"""
