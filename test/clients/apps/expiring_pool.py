"""A pool of psycopg under load whose tokens expire: with connections that end before, or that are given new tokens.

Reads PGHOST, PGPORT, PGUSER, PGDATABASE and TOKEN_URL, where a GET answers a token; takes "lifetime" or "renewal", seconds
of lifetime, seconds to run, and a number of threads. Prints one JSON line: who each statement was asked by, and where.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

from psycopg import sql
from psycopg_pool import ConnectionPool


def fresh_token():
    with urlopen(os.environ["TOKEN_URL"]) as answer:
        return answer.read().decode()


def renew(connection):
    connection.execute(sql.SQL("set pgjot.token = {}").format(fresh_token()))
    connection.commit()


def main(way, lifetime, seconds, threads):
    options = {"max_lifetime": lifetime} if way == "lifetime" else {"check": renew}
    end = time.monotonic() + seconds

    def ask(_):
        heard = []
        while time.monotonic() < end:
            with pool.connection() as connection:
                cursor = connection.execute("select auth.user_id(), pg_backend_pid() from pg_sleep(0.005)")
                user, pid = cursor.fetchone()
                heard.append({"user": user, "pid": pid})
        return heard

    # Called for each new connection, each time.
    password = {"kwargs": lambda: {"password": fresh_token()}}
    with ConnectionPool(min_size=threads, max_size=threads, **password, **options) as pool:
        with ThreadPoolExecutor(threads) as workers:
            print(json.dumps([one for part in workers.map(ask, range(threads)) for one in part]))


main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
