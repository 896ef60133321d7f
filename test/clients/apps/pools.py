"""Pools of asyncpg and psycopg, which reset a connection before they lend it again: who is the user then?

Reads PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE; prints one JSON line: a list of user ids for each driver.
"""

import asyncio
import json

import asyncpg
from psycopg_pool import AsyncConnectionPool

TIMES = 4


async def with_asyncpg():
    seen = []
    async with asyncpg.create_pool(min_size=1, max_size=1) as pool:
        for _ in range(TIMES):
            # Leaving this block sends: SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL
            async with pool.acquire() as connection:
                await connection.execute("set application_name to 'changed'")
                seen.append(await connection.fetchval("select auth.user_id() where $1::int = 1", 1))
    return seen


async def with_psycopg():
    async def discard(connection):
        await connection.set_autocommit(True)
        await connection.execute("discard all")
        await connection.set_autocommit(False)

    seen = []
    async with AsyncConnectionPool(min_size=1, max_size=1, reset=discard) as pool:
        for _ in range(TIMES):
            async with pool.connection() as connection:
                cursor = await connection.execute("select auth.user_id()")
                seen.append((await cursor.fetchone())[0])
    return seen


async def main():
    print(json.dumps({"asyncpg": await with_asyncpg(), "psycopg": await with_psycopg()}))


asyncio.run(main())
