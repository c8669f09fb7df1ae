"""One request's journey, a file a step.

``arrays`` and ``feeds`` check what came, ``staging`` and ``h2d`` bring it to the device,
``execute`` runs the model, ``d2h`` and ``outputs`` bring the result back; ``plan``, ``request``
and ``slot`` are what travels. ``pipeline`` alone knows the order.
"""
