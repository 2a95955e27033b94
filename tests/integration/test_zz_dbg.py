from inside import inside
from world import run
def test_x(database):
    async def scene():
        async with inside(database.settings) as office:
            import traceback
            try: box = await office.mailbox()
            except BaseException: traceback.print_exc(); raise
            sent = office.enqueue(box)
            import traceback
            try: print("BEGUN", await office.begin())
            except BaseException: traceback.print_exc(); raise
            import asyncio
            for i in range(5):
                await asyncio.sleep(0.5); print(office.process.engine.turns, office.provider.seen, await office.states(), len(office.process.registrar._queue), [t for t in asyncio.all_tasks()])
    run(scene())
