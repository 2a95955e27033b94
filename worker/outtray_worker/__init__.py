"""How mail goes out: Celery brings rounds, the engine runs turns, the registrar writes, providers hand over."""
