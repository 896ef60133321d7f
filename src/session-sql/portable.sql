-- The objects of session modes "portable" and "replica": roles, schema pgjot, and an identity that SQL cannot forge.
--
-- No extension, no superuser; PostgreSQL 14 to 18; run by an ordinary administrator who has CREATEROLE and
-- owns the database. It is one transaction (install.ts opens and commits it) and may be run again at any
-- time: to change the number of slots, to rotate the secret, to repair slots that a client has spoilt.
--
-- install.ts, or the output of `pgjot setup --dry-run`, provides three settings first:
--
--   pgjot_install.version   the version of these objects, a number that grows
--   pgjot_install.control   the SCRAM verifier of pgjot_control
--   pgjot_install.slots     [{"role": "authenticated", "slot": "pgjot_authenticated_1",
--                             "number": 1, "verifier": "SCRAM-SHA-256$…", "attributes": []}, …]
--   pgjot_install.lookup    the SCRAM verifier of pgjot_lookup, or nothing where no lookup is configured
--   pgjot_install.mode      "portable", which serves standbys too, or "pg_session_jwt"
--
-- and a temporary table pgjot_secret (name, value), which may have a row "identity_key": the key of the identities on
-- standbys, 64 bytes in hexadecimal. It comes by COPY, because the server's log can hold parameters, and never such data.
--
-- They are settings and not pasted text so that no name is ever unquoted SQL, and so that log_statement = 'ddl'
-- shows no verifier: the statements that carry them run inside DO. (A verifier is not a password and cannot be
-- turned into one, but whoever holds it may try guesses; ours are of 256 bits.)
--
-- (The identity key is a secret, though: so --dry-run leaves it out.)
--
-- How it holds together. The client runs any SQL it likes, logged in as a *slot* role with SET ROLE to its
-- *group* role. Its identity is a row of pgjot.session, keyed by backend pid and start time, that only the
-- control connection can write; on a standby, where nobody can write, it is a setting that the proxy has signed
-- for that one backend. Nothing that a client can change (settings, temporary objects, sequences,
-- search_path, roles) takes part in reading it.
--
-- What it changes it says in INFO messages, one line each, whatever client_min_messages is; what was there
-- already it does not mention. (Passwords are set every time: whether that changes one, nobody can see.)


-- The administrator's search_path may hold a schema in which somebody else planted an operator.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;      -- not one NOTICE for each thing that exists already
DO $$ BEGIN PERFORM set_config('pgjot_install.admin', current_user, true); END $$;

-- What the functions are like now, to tell at the end (auth.sql) which of them have changed.
CREATE OR REPLACE FUNCTION pg_temp.our_functions() RETURNS jsonb
LANGUAGE sql STABLE AS $$
  SELECT coalesce(jsonb_object_agg(p.oid::regprocedure, md5(pg_get_functiondef(p.oid) || coalesce(p.proacl::text, ''))), '{}')
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
   WHERE n.nspname IN ('pgjot', 'auth') AND p.prokind = 'f' AND p.proowner = to_regrole('pgjot_owner')
$$;

CREATE OR REPLACE FUNCTION pg_temp.wanted_slots()
RETURNS TABLE (role name, slot name, number int4, verifier text, attributes text[])
LANGUAGE sql STABLE AS $$
  SELECT * FROM jsonb_to_recordset(current_setting('pgjot_install.slots')::jsonb)
             AS x (role name, slot name, number int4, verifier text, attributes text[])
$$;


-- Whether clients of a group would be, or could become by SET ROLE, something that was not allowed by name. lease()
-- asks the same at each call.
CREATE OR REPLACE FUNCTION pg_temp.is_too_mighty(p_role name, p_allowed text[]) RETURNS bool
LANGUAGE sql STABLE AS $$
  SELECT 'SUPERUSER' <> ALL (p_allowed)
         AND EXISTS (SELECT FROM pg_roles g
                      WHERE (g.rolsuper
                             OR g.rolbypassrls AND 'BYPASSRLS' <> ALL (p_allowed)
                             OR g.rolcreaterole AND 'CREATEROLE' <> ALL (p_allowed)
                             OR g.rolreplication AND 'REPLICATION' <> ALL (p_allowed)
                             OR g.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
                        AND pg_has_role(p_role, g.oid, 'MEMBER'))
$$;


-- Repairs what a client can do to the role it is logged in as: ALTER ROLE … SET. Returns whether nothing is left of it.
CREATE OR REPLACE FUNCTION pg_temp.has_been_reset(p_slot name) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
  scope text;
BEGIN
  FOR scope IN
    SELECT coalesce(' IN DATABASE ' || quote_ident(d.datname), '')
      FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase
     WHERE s.setrole = (SELECT oid FROM pg_roles WHERE rolname = p_slot)
  LOOP
    EXECUTE format('ALTER ROLE %I%s RESET ALL', p_slot, scope);
    RAISE INFO 'reset the settings of slot "%"%', p_slot, lower(scope);
  END LOOP;
  RETURN NOT EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setrole = (SELECT oid FROM pg_roles WHERE rolname = p_slot));
END
$$;


-- 0. From another version -----------------------------------------------------------------------------------
--
-- Everything below can be run over what an older version left: roles are brought into shape, functions are
-- replaced, and those that this version does not have are dropped (section 4). What CREATE TABLE IF NOT EXISTS
-- cannot do, a new column for instance, is one ALTER TABLE … IF NOT EXISTS behind the CREATE in section 2.
DO $version$
DECLARE
  ours      constant int4 := current_setting('pgjot_install.version')::int4;
  -- Read and not called: whoever took the schema's name before us shall not run code as the administrator.
  installed constant int4 := (
    SELECT substring(pg_get_function_sqlbody(p.oid), '\d{1,9}')::int4
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname = 'pgjot' AND p.proname = 'version' AND p.pronargs = 0);
BEGIN
  IF installed > ours THEN
    RAISE EXCEPTION 'pgjot: version % of the session functions is installed, newer than version % of this program',
      installed, ours USING ERRCODE = '55000', HINT = 'Use the pgjot that installed it, or a later one.';
  END IF;
  PERFORM set_config('pgjot_install.installed', coalesce(installed::text, ''), true);
  PERFORM set_config('pgjot_install.functions', pg_temp.our_functions()::text, true);
  IF current_setting('server_version_num')::int4 >= 160000 THEN
    -- Else CREATE ROLE may make the administrator a full member of every slot.
    PERFORM set_config('createrole_self_grant', '', true);
  END IF;
END
$version$;


-- 1. Roles --------------------------------------------------------------------------------------------------
--
--   group    NOLOGIN   what policies and grants name: authenticated
--   slot     LOGIN     what a client's backend is logged in as: member of its group and of nothing else.
--                      One role each, because two sessions of one role can read each other's running
--                      SQL and terminate one another. CONNECTION LIMIT 1 makes PostgreSQL itself refuse a
--                      second session on a slot, whatever a proxy may believe.
--   control  LOGIN     member of nothing, may call bind, unbind, terminate, lease, release, sweep
--   lookup   LOGIN     where a lookup is configured: runs that one query, and has what the administrator grants it
--   owner    NOLOGIN   owns the schema; member of slots and control for one purpose: without it
--                      pg_stat_get_activity() hides the start time of their backends
DO $roles$
DECLARE
  version  constant int4 := current_setting('server_version_num');
  to_owner constant text := CASE WHEN version >= 160000 THEN ' WITH INHERIT TRUE, SET FALSE' ELSE '' END;
  wanted   record;
  setting  record;
  stray    regrole;
  made     name[] := '{}';       -- the group of each slot that is made
BEGIN
  FOR wanted IN
    SELECT DISTINCT role, attributes FROM pg_temp.wanted_slots()
  LOOP
    IF wanted.role ~ '^(pg|pgjot)_' OR wanted.role = 'public' THEN
      RAISE EXCEPTION 'pgjot: role "%" cannot be a group of slots', wanted.role USING ERRCODE = '42939';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.role) THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', wanted.role);
      RAISE INFO 'created role "%"', wanted.role;
    ELSIF pg_temp.is_too_mighty(wanted.role, coalesce(wanted.attributes, '{}')) THEN
      RAISE EXCEPTION 'pgjot: role "%" must neither be SUPERUSER, BYPASSRLS, CREATEROLE or REPLICATION nor a member of a role that is, or that reads or runs files of the server', wanted.role
        USING ERRCODE = '42501', HINT = 'Row-Level Security would not hold for its clients. If that is what you want, name it in "attributes" of this role in the configuration.';
    END IF;
  END LOOP;

  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgjot_owner') THEN
    CREATE ROLE pgjot_owner;
    RAISE INFO 'created role "pgjot_owner"';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgjot_control') THEN
    CREATE ROLE pgjot_control;
    RAISE INFO 'created role "pgjot_control"';
  END IF;
  ALTER ROLE pgjot_owner NOLOGIN INHERIT;
  EXECUTE format('ALTER ROLE pgjot_control LOGIN NOINHERIT CONNECTION LIMIT 16 PASSWORD %L',
                 current_setting('pgjot_install.control'));
  EXECUTE 'GRANT pgjot_control TO pgjot_owner' || to_owner;

  IF current_setting('pgjot_install.lookup') <> '' THEN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgjot_lookup') THEN
      CREATE ROLE pgjot_lookup;
      EXECUTE 'GRANT pgjot_lookup TO pgjot_owner' || to_owner;
      RAISE INFO 'created role "pgjot_lookup": grant it what the lookup has to read';
    END IF;
    EXECUTE format('ALTER ROLE pgjot_lookup LOGIN CONNECTION LIMIT 64 PASSWORD %L', current_setting('pgjot_install.lookup'));
  END IF;

  -- What a client did to its slot and no administrator can undo (a setting of an extension whose library only the slot's
  -- own sessions load) goes with the role, which then is made anew.
  FOR wanted IN
    SELECT x.slot, s.oid FROM pg_temp.wanted_slots() x JOIN pg_roles s ON s.rolname = x.slot
     WHERE EXISTS (SELECT FROM pg_db_role_setting d WHERE d.setrole = s.oid)
  LOOP
    IF NOT pg_temp.has_been_reset(wanted.slot) THEN
      IF EXISTS (SELECT FROM pg_stat_get_activity(NULL) a WHERE a.usesysid = wanted.oid) THEN
        RAISE WARNING 'pgjot: slot "%" is in use, and has settings that can only go with it; run setup again', wanted.slot;
        CONTINUE;
      END IF;
      BEGIN
        EXECUTE format('DROP ROLE %I', wanted.slot);
        RAISE INFO 'made slot "%" anew, whose settings nobody can reset', wanted.slot;
      EXCEPTION WHEN dependent_objects_still_exist THEN
        RAISE WARNING 'pgjot: slot "%" has settings that only a superuser can reset, and owns objects', wanted.slot;
      END;
    END IF;
  END LOOP;

  FOR wanted IN
    SELECT x.*, s.oid, s.rolvaliduntil < 'infinity' AS expires,
           NOT (s.rolcanlogin AND s.rolinherit AND s.rolconnlimit = 1) AS altered
      FROM pg_temp.wanted_slots() x
      LEFT JOIN pg_roles s ON s.rolname = x.slot
     ORDER BY x.role, x.number
  LOOP
    IF wanted.oid IS NULL THEN
      EXECUTE format('CREATE ROLE %I LOGIN INHERIT CONNECTION LIMIT 1 PASSWORD %L', wanted.slot, wanted.verifier);
      EXECUTE format('GRANT %I TO %I', wanted.role, wanted.slot);
      EXECUTE format('GRANT %I TO pgjot_owner', wanted.slot) || to_owner;
      made := made || wanted.role;
      CONTINUE;
    END IF;

    EXECUTE format('ALTER ROLE %I LOGIN INHERIT CONNECTION LIMIT 1 PASSWORD %L', wanted.slot, wanted.verifier);
    IF wanted.altered THEN
      RAISE INFO 'gave slot "%" its attributes back', wanted.slot;
    END IF;
    IF wanted.expires THEN
      EXECUTE format('ALTER ROLE %I VALID UNTIL ''infinity''', wanted.slot);
      RAISE INFO 'let slot "%" expire no more', wanted.slot;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                    WHERE m.member = wanted.oid AND g.rolname = wanted.role) THEN
      EXECUTE format('GRANT %I TO %I', wanted.role, wanted.slot);
      RAISE INFO 'made slot "%" a member of "%" again', wanted.slot, wanted.role;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_auth_members m
                    WHERE m.roleid = wanted.oid AND m.member = 'pgjot_owner'::regrole) THEN
      EXECUTE format('GRANT %I TO pgjot_owner', wanted.slot) || to_owner;
      RAISE INFO 'granted slot "%" to "pgjot_owner" again', wanted.slot;
    END IF;

    -- Before PostgreSQL 15 every role was an administrator of itself: clients could grant their slots to each other.
    IF version < 150000 THEN
      FOR stray IN
        SELECT m.member FROM pg_auth_members m
         WHERE m.roleid = wanted.oid AND m.member <> 'pgjot_owner'::regrole
      LOOP
        EXECUTE format('REVOKE %I FROM %s', wanted.slot, stray);
        RAISE INFO 'took slot "%" back from role %', wanted.slot, stray;
      END LOOP;
      FOR stray IN
        SELECT m.roleid FROM pg_auth_members m
          JOIN pg_roles r ON r.oid = m.roleid AND r.rolname ~ '^pgjot_.+_\d+$'
         WHERE m.member = wanted.oid
      LOOP
        EXECUTE format('REVOKE %s FROM %I', stray, wanted.slot);
        RAISE INFO 'took role % back from slot "%"', stray, wanted.slot;
      END LOOP;
    END IF;
  END LOOP;
  FOR wanted IN
    SELECT role, count(*) AS slots FROM unnest(made) role GROUP BY role ORDER BY role
  LOOP
    RAISE INFO 'created % slots of role "%"', wanted.slots, wanted.role;
  END LOOP;

  -- Databases are often hardened by REVOKE CONNECT … FROM PUBLIC. Slots inherit their group's.
  FOR wanted IN
    SELECT DISTINCT role FROM pg_temp.wanted_slots()
    UNION SELECT 'pgjot_control'
    UNION SELECT 'pgjot_lookup' WHERE current_setting('pgjot_install.lookup') <> ''
  LOOP
    IF NOT has_database_privilege(wanted.role, current_database(), 'CONNECT') THEN
      EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), wanted.role);
      RAISE INFO 'let role "%" connect to database "%"', wanted.role, current_database();
    END IF;
  END LOOP;
END
$roles$;


-- 2. Schema and tables, owned by pgjot_owner and granted to nobody ------------------------------------------

-- Since PostgreSQL 16 who creates a role may administer it, but not become it. Taken back in section 6.
GRANT pgjot_owner TO CURRENT_USER;
CREATE SCHEMA IF NOT EXISTS pgjot AUTHORIZATION pgjot_owner;

DO $schema$
BEGIN
  -- CREATE OR REPLACE keeps the owner of what it replaces. Whoever was allowed to create schemas
  -- and took the name first would own the functions that decide who everybody is.
  IF (SELECT nspowner FROM pg_namespace WHERE nspname = 'pgjot') <> 'pgjot_owner'::regrole THEN
    RAISE EXCEPTION 'pgjot: schema "pgjot" exists and does not belong to pgjot_owner' USING ERRCODE = '42P06';
  END IF;
END
$schema$;

GRANT SELECT ON pg_temp.pgjot_secret TO pgjot_owner;
SET LOCAL ROLE pgjot_owner;

CREATE TABLE IF NOT EXISTS pgjot.slot (
  slot    name PRIMARY KEY,
  role    name NOT NULL,          -- its group
  number  int4 NOT NULL,
  UNIQUE (role, number)
);

-- One row for each group that has slots. lease() locks it, so that two calls never choose at the same time.
CREATE TABLE IF NOT EXISTS pgjot.slot_group (
  role name PRIMARY KEY
);
-- Since version 2: what the role may be although Row-Level Security does not hold for it then.
ALTER TABLE pgjot.slot_group ADD COLUMN IF NOT EXISTS attributes text[] NOT NULL DEFAULT '{}';

-- UNLOGGED: a crash ends all backends, so their identities may go with them; no WAL at a login; not on
-- standbys, nor in logical replication. fillfactor leaves room for HOT updates by bind().
CREATE UNLOGGED TABLE IF NOT EXISTS pgjot.session (
  pid           int4        PRIMARY KEY,
  backend_start int8        NOT NULL,     -- microseconds since 1970, as everywhere here: no DateStyle to mind
  client_addr   inet,                     -- NULL on a Unix socket
  client_port   int4,
  epoch         int8        NOT NULL,     -- how often this pid has been bound
  claims        jsonb       NOT NULL,
  expires_at    timestamptz NOT NULL,
  bound_at      timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- Which control backend has which slot. A lease lives as long as that backend does.
-- Not an advisory lock: any client may take any advisory lock of its database, and one that took all of
-- them would lock every login out. Nobody but pgjot_owner can lock these rows.
CREATE UNLOGGED TABLE IF NOT EXISTS pgjot.lease (
  slot          name PRIMARY KEY,
  control_pid   int4 NOT NULL,
  control_start int8 NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- The key of the identities on standbys, as the two blocks that HMAC (RFC 2104) hashes first; and, since version 3, the one
-- before the last rotation, for the sessions that it has signed, until `pgjot rotate-secret --finish`. Not unlogged:
-- standbys have to have it. Dumps carry it, so it goes with the upstream's secret when that is rotated.
CREATE TABLE IF NOT EXISTS pgjot.identity_key (
  inner_block bytea NOT NULL,
  outer_block bytea NOT NULL
);
-- Not where it is so already: the lock would be taken on standbys too, and end the transactions of who has read it there.
DO $previous_key$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = 'pgjot.identity_key'::regclass AND a.attname = 'current') THEN
    ALTER TABLE pgjot.identity_key ADD COLUMN current bool NOT NULL DEFAULT true;
    DROP INDEX IF EXISTS pgjot.identity_key_only_one;
  END IF;
END
$previous_key$;
CREATE UNIQUE INDEX IF NOT EXISTS identity_key_one_current ON pgjot.identity_key (current);

DO $identity_key$
DECLARE
  -- Of HMAC-SHA-256's block length, so it is neither hashed nor padded.
  key       constant bytea := coalesce((SELECT decode(value, 'hex') FROM pg_temp.pgjot_secret WHERE name = 'identity_key'), '');
  inner_pad bytea := key;
  outer_pad bytea := key;
BEGIN
  IF length(key) NOT IN (0, 64) THEN
    RAISE EXCEPTION 'pgjot: the identity key must be of 64 bytes' USING ERRCODE = '22023';
  END IF;
  FOR i IN 0 .. length(key) - 1 LOOP
    inner_pad := set_byte(inner_pad, i, get_byte(key, i) # 54);      -- 0x36
    outer_pad := set_byte(outer_pad, i, get_byte(key, i) # 92);      -- 0x5c
  END LOOP;
  -- With another key than the current one, all go: what a rotation has kept is kept by the secret that it led to.
  DELETE FROM pgjot.identity_key k
   WHERE NOT EXISTS (SELECT FROM pgjot.identity_key c WHERE c.current AND c.inner_block = inner_pad);
  INSERT INTO pgjot.identity_key (inner_block, outer_block)
  SELECT inner_pad, outer_pad WHERE length(key) > 0
  ON CONFLICT DO NOTHING;
END
$identity_key$;

-- A tripwire. Who has the privileges of a role may run DROP OWNED BY it, and that drops every policy that
-- names the role alone, whoever owns the table: any client of authenticated could delete all policies TO
-- authenticated. But DROP OWNED also revokes, and REVOKE fails hard on a table on which the one who runs it
-- has no table-level privilege. So section 5 grants each group a *column* of this table, and the whole
-- command fails: "permission denied for table drop_owned_guard".
CREATE TABLE IF NOT EXISTS pgjot.drop_owned_guard (
  wire bool
);

-- Of these nobody but their owner sees or changes a row, even with pg_read_all_data or pg_write_all_data: they make nobody an
-- exception to Row-Level Security, and there are no policies. Not where it is so already: a session holds these tables.
DO $rls$
DECLARE
  open_table regclass;
BEGIN
  FOR open_table IN
    SELECT c.oid FROM pg_class c
     WHERE c.relnamespace = 'pgjot'::regnamespace AND c.relname IN ('session', 'lease', 'slot_group', 'identity_key')
       AND NOT c.relrowsecurity
  LOOP
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', open_table);
  END LOOP;
END
$rls$;


-- 3. What the control connection calls ----------------------------------------------------------------------

-- Live backends: all of them, or the one with this pid. A parallel worker is none, though it has a login role.
-- Of a backend that is neither a slot's nor control's, all but the roles is NULL here, hence equal to nothing.
CREATE OR REPLACE FUNCTION pgjot.backends(p_pid int4)
RETURNS TABLE (pid int4, started int8, login oid, database oid, client_addr inet, client_port int4)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT a.pid, (extract(epoch FROM a.backend_start) * 1000000)::int8, a.usesysid, a.datid,
         a.client_addr, CASE WHEN a.client_addr IS NOT NULL THEN a.client_port END  -- -1 on a Unix socket
    FROM pg_stat_get_activity(p_pid) a
   WHERE a.backend_type IS DISTINCT FROM 'parallel worker';
END;

-- The second lock on the door: an administrator who grants bind() to the wrong role, or to PUBLIC, has not
-- opened it. session_user is the login role, which only a superuser can change.
CREATE OR REPLACE FUNCTION pgjot.assert_control() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF session_user <> 'pgjot_control' THEN
    RAISE EXCEPTION 'pgjot: permission denied, only the control connection may do this' USING ERRCODE = '42501';
  END IF;
  -- Backends are otherwise seen as they were when this transaction first looked.
  PERFORM pg_stat_clear_snapshot();
END
$$;

-- What hello() says, of the backend with this pid, if it is logged in with this slot; else dirty is NULL. Asked here, where
-- everything is at hand: a new backend would first have to read what it needs for the answer, which takes it 2 ms.
-- Without a start where an earlier tenant has hidden the slot from us, which is dirty as well.
CREATE OR REPLACE FUNCTION pgjot.greet(p_pid int4, p_slot name, OUT backend_start int8, OUT dirty bool,
                                       OUT in_recovery bool, OUT mode text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pgjot.assert_control();
  in_recovery := pg_is_in_recovery();
  mode := pgjot.mode();
  SELECT b.started,
         EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setrole = b.login)
         OR (current_setting('server_version_num')::int4 < 150000
             AND (ARRAY(SELECT m.member FROM pg_auth_members m WHERE m.roleid = b.login)
                  <> ARRAY['pgjot_owner'::regrole::oid]
                  OR (SELECT count(*) FROM pg_auth_members m WHERE m.member = b.login) <> 1))
    INTO backend_start, dirty
    FROM pgjot.backends(p_pid) b
    JOIN pg_roles r ON r.oid = b.login AND r.rolname = p_slot;
END
$$;

-- Gives the backend with this pid and start an identity until p_expires (milliseconds since 1970), replacing
-- the one it had. Returns the epoch of the binding.
CREATE OR REPLACE FUNCTION pgjot.bind(p_pid int4, p_start int8, p_claims jsonb, p_expires int8) RETURNS int8
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  bound_epoch int8;
BEGIN
  PERFORM pgjot.assert_control();
  IF pg_is_in_recovery() THEN
    RAISE EXCEPTION 'pgjot: nothing can be bound on a standby' USING ERRCODE = '55000',
      HINT = 'Its upstream needs "session": "replica".';
  END IF;
  IF jsonb_typeof(p_claims) IS DISTINCT FROM 'object'
     OR jsonb_typeof(p_claims -> 'sub') IS DISTINCT FROM 'string'
     OR p_claims ->> 'sub' = '' THEN
    RAISE EXCEPTION 'pgjot: claims must be an object with a non-empty string "sub"' USING ERRCODE = '22023';
  END IF;
  -- The upper bound, the end of the year 9999, keeps to_timestamp() within its range.
  IF p_expires IS NULL OR p_expires NOT BETWEEN 0 AND 253402300799999
     OR to_timestamp(p_expires / 1000.0) <= clock_timestamp() THEN
    RAISE EXCEPTION 'pgjot: expiry must be in the future and finite' USING ERRCODE = '22023';
  END IF;

  -- The start time makes the difference between the backend that said hello() and a later one that was
  -- given the same pid. The slot and the database keep identities off everybody else's backends.
  INSERT INTO pgjot.session AS s
         (pid, backend_start, client_addr, client_port, epoch, claims, expires_at, bound_at)
  SELECT b.pid, b.started, b.client_addr, b.client_port, 1,
         p_claims, to_timestamp(p_expires / 1000.0), clock_timestamp()
    FROM pgjot.backends(p_pid) b
    JOIN pg_roles r    ON r.oid = b.login
    JOIN pgjot.slot t  ON t.slot = r.rolname
    JOIN pg_database d ON d.oid = b.database AND d.datname = current_database()
   WHERE b.started = p_start
  ON CONFLICT (pid) DO UPDATE
     SET backend_start = excluded.backend_start, client_addr = excluded.client_addr,
         client_port = excluded.client_port, epoch = s.epoch + 1, claims = excluded.claims,
         expires_at = excluded.expires_at, bound_at = excluded.bound_at
  RETURNING s.epoch INTO bound_epoch;

  IF bound_epoch IS NULL THEN
    RAISE EXCEPTION 'pgjot: no live backend of a slot in this database has this pid and start'
      USING ERRCODE = '08003';
  END IF;
  RETURN bound_epoch;
END
$$;

-- Takes the identity away, from the next statement on. (A transaction at REPEATABLE READ or above keeps
-- seeing the row it saw, so whoever revokes also ends the backend.) Returns whether that very backend is
-- still alive, that is, whether its slot is still taken.
CREATE OR REPLACE FUNCTION pgjot.unbind(p_pid int4, p_start int8) RETURNS bool
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pgjot.assert_control();
  IF NOT pg_is_in_recovery() THEN
    DELETE FROM pgjot.session s WHERE s.pid = p_pid AND s.backend_start = p_start;
  END IF;
  RETURN EXISTS (SELECT FROM pgjot.backends(p_pid) b WHERE b.started = p_start);
END
$$;

-- Ends the backend of a slot, for when nobody listens to it any more: a statement that catches query_canceled
-- outlives every cancel, and each one that is left running costs a slot. Returns whether there was one to end.
CREATE OR REPLACE FUNCTION pgjot.terminate(p_pid int4, p_start int8) RETURNS bool
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pgjot.assert_control();
  RETURN coalesce((
    SELECT pg_terminate_backend(b.pid)
      FROM pgjot.backends(p_pid) b
      JOIN pg_roles r   ON r.oid = b.login
      JOIN pgjot.slot t ON t.slot = r.rolname
     WHERE b.started = p_start), false);
END
$$;

-- Leases up to p_count free slots of a group to the calling control backend. Free: nobody alive has leased
-- it, and nobody is logged in as it, in any database of the cluster. None at all of a group for which Row-Level
-- Security does not hold any more.
--
-- On a standby nothing can be written, so nothing is leased: it names slots that nobody is logged in as, in any
-- order, so that two proxies seldom get the same one; CONNECTION LIMIT 1 decides between them.
CREATE OR REPLACE FUNCTION pgjot.lease(p_role name, p_count int4) RETURNS SETOF name
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  allowed text[];
BEGIN
  PERFORM pgjot.assert_control();
  IF pg_is_in_recovery() THEN
    SELECT g.attributes INTO allowed FROM pgjot.slot_group g WHERE g.role = p_role;
  ELSE
    SELECT g.attributes INTO allowed FROM pgjot.slot_group g WHERE g.role = p_role FOR UPDATE;
  END IF;
  IF allowed IS NULL THEN
    RAISE EXCEPTION 'pgjot: role "%" has no slots in this database', p_role USING ERRCODE = '42704';
  END IF;
  -- It was not when setup ran. Whoever gave it this since meant something else.
  IF 'SUPERUSER' <> ALL (allowed)
     AND EXISTS (SELECT FROM pg_roles g
                  WHERE (g.rolsuper
                         OR g.rolbypassrls AND 'BYPASSRLS' <> ALL (allowed)
                         OR g.rolcreaterole AND 'CREATEROLE' <> ALL (allowed)
                         OR g.rolreplication AND 'REPLICATION' <> ALL (allowed)
                         OR g.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
                    AND pg_has_role(p_role, g.oid, 'MEMBER')) THEN
    RAISE EXCEPTION 'pgjot: role "%" must neither be SUPERUSER, BYPASSRLS, CREATEROLE or REPLICATION nor a member of a role that is, or that reads or runs files of the server', p_role
      USING ERRCODE = '42501', HINT = 'Row-Level Security would not hold for its clients.';
  END IF;

  IF pg_is_in_recovery() THEN
    RETURN QUERY
    WITH backend AS MATERIALIZED (
      SELECT b.login FROM pgjot.backends(NULL) b
    )
    SELECT t.slot
      FROM pgjot.slot t
      JOIN pg_roles r ON r.rolname = t.slot AND r.rolcanlogin
     WHERE t.role = p_role
       AND NOT EXISTS (SELECT FROM backend b WHERE b.login = r.oid)
     ORDER BY random()
     LIMIT greatest(p_count, 0);
    RETURN;
  END IF;

  -- Backends are looked at here for the first time: after the lock and no sooner, or a lease of a control
  -- backend that connected in between would be taken for a dead one's.
  RETURN QUERY
  WITH backend AS MATERIALIZED (
    SELECT b.pid, b.started, b.login FROM pgjot.backends(NULL) b
  ), free AS (
    SELECT t.slot
      FROM pgjot.slot t
      JOIN pg_roles r ON r.rolname = t.slot AND r.rolcanlogin
     WHERE t.role = p_role
       AND NOT EXISTS (SELECT FROM backend b WHERE b.login = r.oid)
       AND NOT EXISTS (SELECT FROM pgjot.lease l JOIN backend b ON b.pid = l.control_pid AND b.started = l.control_start
                        WHERE l.slot = t.slot)
     ORDER BY t.number
     LIMIT greatest(p_count, 0)
  )
  INSERT INTO pgjot.lease AS l (slot, control_pid, control_start)
  SELECT f.slot, b.pid, b.started FROM free f JOIN backend b ON b.pid = pg_backend_pid()
  ON CONFLICT (slot) DO UPDATE SET control_pid = excluded.control_pid, control_start = excluded.control_start
  RETURNING l.slot;
END
$$;

-- Gives a lease up. Somebody else's, or none at all, stays as it is.
CREATE OR REPLACE FUNCTION pgjot.release(p_slot name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pgjot.assert_control();
  IF pg_is_in_recovery() THEN
    RETURN;
  END IF;
  DELETE FROM pgjot.lease l
   USING pgjot.backends(pg_backend_pid()) b
   WHERE l.slot = p_slot AND l.control_pid = b.pid AND l.control_start = b.started;
END
$$;

-- Removes identities that have expired or whose backend is gone, and leases whose control backend is gone.
-- None of them has any effect; this keeps the tables small and the claims of past users out of them.
CREATE OR REPLACE FUNCTION pgjot.sweep() RETURNS int8
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  dead  record;
  swept int8 := 0;
BEGIN
  PERFORM pgjot.assert_control();
  IF pg_is_in_recovery() THEN
    RETURN 0;
  END IF;
  -- Row by row, each named by what was judged: a row that bind() or lease() renews meanwhile is spared.
  FOR dead IN
    SELECT s.pid, s.bound_at FROM pgjot.session s
     WHERE s.expires_at <= clock_timestamp()
        OR NOT EXISTS (SELECT FROM pgjot.backends(NULL) b WHERE b.pid = s.pid AND b.started = s.backend_start)
  LOOP
    DELETE FROM pgjot.session s WHERE s.pid = dead.pid AND s.bound_at = dead.bound_at;
    swept := swept + 1;
  END LOOP;
  FOR dead IN
    SELECT l.slot, l.control_pid, l.control_start FROM pgjot.lease l
     WHERE NOT EXISTS (SELECT FROM pgjot.backends(NULL) b WHERE b.pid = l.control_pid AND b.started = l.control_start)
  LOOP
    DELETE FROM pgjot.lease l
     WHERE l.slot = dead.slot AND l.control_pid = dead.control_pid AND l.control_start = dead.control_start;
    swept := swept + 1;
  END LOOP;
  RETURN swept;
END
$$;


-- 4. What a client's backend calls --------------------------------------------------------------------------

-- The backend about itself, before the client may speak. dirty: an earlier tenant has tampered with the login
-- role, which PostgreSQL lets everybody do to the role they are: ALTER ROLE … SET (poisons later sessions) or,
-- before version 15, GRANT of the role to an accomplice (who could then watch and end later sessions), or of an
-- accomplice's role to it (which would let later tenants become that).
--
-- Not SECURITY DEFINER: under SET ROLE NONE it runs as the slot, who may see its own start time. As pgjot_owner,
-- each new backend would first load the owner's memberships, one per slot: 3 ms more where there are 1,000.
CREATE OR REPLACE FUNCTION pgjot.hello(OUT pid int4, OUT backend_start int8, OUT slot name, OUT dirty bool,
                                       OUT in_recovery bool)
LANGUAGE plpgsql STABLE SET role = none SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  SELECT a.pid, (extract(epoch FROM a.backend_start) * 1000000)::int8, session_user,
         EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setrole = a.usesysid)
         OR (current_setting('server_version_num')::int4 < 150000
             AND (ARRAY(SELECT m.member FROM pg_auth_members m WHERE m.roleid = a.usesysid)
                  <> ARRAY['pgjot_owner'::regrole::oid]
                  OR (SELECT count(*) FROM pg_auth_members m WHERE m.member = a.usesysid) <> 1)),
         pg_is_in_recovery()
    INTO pid, backend_start, slot, dirty, in_recovery
    FROM pg_stat_get_activity(pg_backend_pid()) a;
END
$$;

-- On a standby: the claims that the proxy signed for this very backend, or NULL. The setting is
--
--   base64(JSON) "." base64(HMAC-SHA-256 of what is before the dot)
--
--   {"db", "slot", "port", "iat", "exp", "claims"}    in the StartupMessage, to which RESET ALL and DISCARD ALL return
--   {"db", "slot", "pid", "start", "exp", "claims"}   set before the client speaks, where a translated address hides the port
--
-- with "iat" and "exp" in milliseconds since 1970. The client can read it and set it, and gains nothing: any other value
-- has no valid signature, or was signed for another login role, another port, a backend of another minute, another backend.
CREATE OR REPLACE FUNCTION pgjot.signed_claims() RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  setting  constant text := current_setting('pgjot.identity', true);
  signed   constant text := split_part(setting, '.', 1);
  key      pgjot.identity_key;
  given    bytea;
  genuine  bool := false;
  identity jsonb;
BEGIN
  -- Shaped as we write it, so that nothing below raises an error, which could be told from NULL.
  IF setting IS NULL OR setting !~ '^[A-Za-z0-9+/]+={0,2}[.][A-Za-z0-9+/]{43}=$' THEN
    RETURN NULL;
  END IF;
  given := decode(split_part(setting, '.', 2), 'base64');
  FOR key IN SELECT * FROM pgjot.identity_key k ORDER BY k.current DESC LOOP
    -- Not compared as they are: how long that takes would tell how much of a guess is right.
    genuine := sha256(key.outer_block || given)
               = sha256(key.outer_block || sha256(key.outer_block || sha256(key.inner_block || convert_to(signed, 'UTF8'))));
    EXIT WHEN genuine;
  END LOOP;
  IF NOT genuine THEN
    RETURN NULL;
  END IF;

  identity := convert_from(decode(signed, 'base64'), 'UTF8')::jsonb;
  IF identity ->> 'slot' = session_user AND identity ->> 'db' = current_database()
     AND (identity ->> 'exp')::int8 > extract(epoch FROM clock_timestamp()) * 1000
     AND EXISTS (SELECT FROM pgjot.backends(pg_backend_pid()) b
                  WHERE CASE WHEN identity ? 'start'
                             THEN (identity ->> 'pid')::int4 = b.pid AND (identity ->> 'start')::int8 = b.started
                             ELSE (identity ->> 'port')::int4 = inet_client_port()
                                  AND abs(b.started / 1000 - (identity ->> 'iat')::int8) <= 60000
                        END) THEN
    RETURN identity -> 'claims';
  END IF;
  RETURN NULL;
END
$$;

-- The claims of this backend's identity, or NULL. Everything else reads through pgjot.claims().
--
-- It takes no argument, and what it looks at (pid, peer address, clock, an owner-only table) no client can
-- set. A row that an earlier backend with this pid left behind cannot match: over TCP its client's address
-- and port differ, on a Unix socket its start time does; and it expires.
--
-- clock_timestamp(), not statement_timestamp(): else one DO loop would stay signed in for as long as it runs.
-- STABLE: cached plans ask again at each execution. RESTRICTED: a parallel worker has another pid.
-- enable_seqscan: the plan is cached, perhaps while the table has one page, and used when it has a hundred.
-- Two queries, because a new backend, and one after DISCARD ALL, plans what it executes, and pgjot.backends() is dear to plan.
DO $claims$
DECLARE
  -- Since version 18 the plans of SQL functions are cached as well. There the usual case is one, parsed here and now: a new
  -- backend has neither to load PL/pgSQL nor to parse anything, and spends a millisecond less on its first look.
  in_sql constant bool := current_setting('server_version_num')::int4 >= 180000;
BEGIN
  EXECUTE format($create$
    CREATE OR REPLACE FUNCTION pgjot.%I() RETURNS jsonb
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    DECLARE
      found_claims jsonb;
    BEGIN
      IF pg_is_in_recovery() THEN
        RETURN pgjot.signed_claims();
      END IF;
      IF inet_client_addr() IS NOT NULL THEN
        SELECT s.claims INTO found_claims FROM pgjot.session s
         WHERE s.pid = pg_backend_pid()
           AND s.expires_at > clock_timestamp()
           AND s.client_addr = inet_client_addr()
           AND s.client_port = inet_client_port();
      ELSE
        SELECT s.claims INTO found_claims FROM pgjot.session s
         WHERE s.pid = pg_backend_pid()
           AND s.expires_at > clock_timestamp()
           AND s.client_addr IS NULL
           AND s.backend_start = (SELECT b.started FROM pgjot.backends(s.pid) b);
      END IF;
      -- Where its standby was promoted, a session has lost its identity. Better an error than a table that looks empty.
      IF found_claims IS NULL AND current_setting('pgjot.identity', true) <> '' THEN
        RAISE EXCEPTION 'pgjot: this server is no standby any more, and the session has no identity' USING ERRCODE = '55000',
          HINT = 'Reconnect.';
      END IF;
      RETURN found_claims;
    END
    $$
  $create$, CASE WHEN in_sql THEN 'claims_otherwise' ELSE 'claims' END);

  IF in_sql THEN
    -- Not IMMUTABLE, strictly speaking, but asked while claims() is planned: on a standby an unlogged table must not even be
    -- planned for. No primary becomes a standby while a session lasts, and what a promoted standby has planned asks PL/pgSQL.
    CREATE OR REPLACE FUNCTION pgjot.is_standby() RETURNS bool
    LANGUAGE sql IMMUTABLE PARALLEL RESTRICTED RETURN current_setting('in_hot_standby') = 'on';

    CREATE OR REPLACE FUNCTION pgjot.claims() RETURNS jsonb
    LANGUAGE sql STABLE PARALLEL RESTRICTED SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
    RETURN CASE WHEN pgjot.is_standby() THEN pgjot.claims_otherwise()
                ELSE coalesce((SELECT s.claims FROM pgjot.session s
                                WHERE s.pid = pg_backend_pid()
                                  AND s.expires_at > clock_timestamp()
                                  AND s.client_addr = inet_client_addr()
                                  AND s.client_port = inet_client_port()),
                              CASE WHEN inet_client_addr() IS NULL OR current_setting('pgjot.identity', true) <> ''
                                   THEN pgjot.claims_otherwise() END)
           END;
  END IF;
END
$claims$;

-- Thin, and inlined by the planner. Their bodies are parsed here and now (RETURN, not AS $$…$$), so no
-- search_path of a caller decides later which operator is meant.
CREATE OR REPLACE FUNCTION pgjot.user_id() RETURNS text
LANGUAGE sql STABLE PARALLEL RESTRICTED RETURN pgjot.claims() ->> 'sub';

CREATE OR REPLACE FUNCTION pgjot.uid() RETURNS uuid      -- NULL where sub is no UUID
LANGUAGE sql STABLE PARALLEL RESTRICTED
RETURN substring(pgjot.user_id(), '^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$')::uuid;

CREATE OR REPLACE FUNCTION pgjot.session() RETURNS jsonb
LANGUAGE sql STABLE PARALLEL RESTRICTED RETURN pgjot.claims();

CREATE OR REPLACE FUNCTION pgjot.jwt() RETURNS jsonb
LANGUAGE sql STABLE PARALLEL RESTRICTED RETURN pgjot.claims();

-- Of these objects, not of pgjot.
DO $version$
BEGIN
  EXECUTE format('CREATE OR REPLACE FUNCTION pgjot.version() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN %L',
                 current_setting('pgjot_install.version'));
  -- A proxy of the other mode would verify one thing while policies believe another.
  EXECUTE format('CREATE OR REPLACE FUNCTION pgjot.mode() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN %L',
                 current_setting('pgjot_install.mode'));
END
$version$;

-- What only an older version had could still be called by whoever could call it then.
DO $former$
DECLARE
  former text;
BEGIN
  FOR former IN
    SELECT p.oid::regprocedure FROM pg_proc p
     WHERE p.pronamespace = 'pgjot'::regnamespace AND p.proowner = 'pgjot_owner'::regrole
       AND p.proname NOT IN ('is_standby', 'claims_otherwise')     -- not in every version of PostgreSQL
       AND p.oid <> ALL (ARRAY[
         'pgjot.backends(int4)', 'pgjot.assert_control()', 'pgjot.bind(int4, int8, jsonb, int8)', 'pgjot.unbind(int4, int8)',
         'pgjot.terminate(int4, int8)', 'pgjot.lease(name, int4)', 'pgjot.release(name)', 'pgjot.sweep()', 'pgjot.greet(int4, name)', 'pgjot.hello()',
         'pgjot.signed_claims()', 'pgjot.claims()',
         'pgjot.user_id()', 'pgjot.uid()', 'pgjot.session()', 'pgjot.jwt()', 'pgjot.version()', 'pgjot.mode()']::regprocedure[])
  LOOP
    -- Not CASCADE: a policy may depend on it.
    EXECUTE format('DROP ROUTINE %s', former);
    RAISE INFO 'dropped function %, which this version does not have', former;
  END LOOP;
END
$former$;


-- 5. Privileges ---------------------------------------------------------------------------------------------

-- A new function can be executed by PUBLIC. ALTER DEFAULT PRIVILEGES IN SCHEMA … REVOKE … FROM PUBLIC would not
-- change that (per-schema defaults only ever add), so: revoke by name, after the last CREATE.
DO $public$
DECLARE
  one regprocedure;
BEGIN
  -- One by one: pgjot.heal() is not ours to revoke, and ON ALL FUNCTIONS would warn of it.
  FOR one IN
    SELECT p.oid FROM pg_proc p
     WHERE p.pronamespace = 'pgjot'::regnamespace AND p.proowner = 'pgjot_owner'::regrole
  LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', one);
  END LOOP;
END
$public$;
REVOKE ALL ON SCHEMA pgjot FROM PUBLIC;

GRANT USAGE ON SCHEMA pgjot TO pgjot_control;
GRANT EXECUTE ON FUNCTION pgjot.bind(int4, int8, jsonb, int8), pgjot.unbind(int4, int8), pgjot.terminate(int4, int8),
  pgjot.lease(name, int4), pgjot.release(name), pgjot.sweep(), pgjot.greet(int4, name), pgjot.version() TO pgjot_control;

DO $grants$
DECLARE
  readers constant text := 'pgjot.claims(), pgjot.user_id(), pgjot.uid(), pgjot.session(), pgjot.jwt(), pgjot.version(), pgjot.mode()';
  admin   constant name := current_setting('pgjot_install.admin');
  g       record;
  guarded name;
BEGIN
  FOR g IN
    SELECT coalesce(w.role, o.role) AS role, w.role IS NOT NULL AS wanted
      FROM (SELECT DISTINCT role FROM pg_temp.wanted_slots()) w
      FULL JOIN pgjot.slot_group o ON o.role = w.role
      JOIN pg_roles r ON r.rolname = coalesce(w.role, o.role)
  LOOP
    IF g.wanted THEN
      EXECUTE format('GRANT USAGE ON SCHEMA pgjot TO %I', g.role);
      EXECUTE format('GRANT EXECUTE ON FUNCTION pgjot.hello(), %s TO %I', readers, g.role);
      -- The group itself, and every role whose privileges it inherits.
      FOR guarded IN SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND pg_has_role(g.role, oid, 'USAGE') LOOP
        EXECUTE format('GRANT SELECT (wire) ON pgjot.drop_owned_guard TO %I', guarded);
      END LOOP;
    ELSE
      EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgjot FROM %I', g.role);
      EXECUTE format('REVOKE ALL ON SCHEMA pgjot FROM %I', g.role);
      EXECUTE format('REVOKE ALL (wire) ON pgjot.drop_owned_guard FROM %I', g.role);
      RAISE INFO 'retired role "%"', g.role;
    END IF;
  END LOOP;
  -- Whoever writes policies must be allowed to name the readers, and to pass that on.
  EXECUTE format('GRANT USAGE ON SCHEMA pgjot TO %I WITH GRANT OPTION', admin);
  EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I WITH GRANT OPTION', readers, admin);
END
$grants$;


-- 6. The list of slots, and farewell to those no longer wanted -----------------------------------------------

INSERT INTO pgjot.slot_group (role, attributes)
SELECT DISTINCT role, coalesce(attributes, '{}') FROM pg_temp.wanted_slots()
ON CONFLICT (role) DO UPDATE SET attributes = excluded.attributes;

INSERT INTO pgjot.slot (slot, role, number)
SELECT slot, role, number FROM pg_temp.wanted_slots()
ON CONFLICT DO NOTHING;

DO $surplus$
DECLARE
  dropped int4 := 0;
  -- Roles belong to the whole cluster. Where another database has pgjot too (its schema depends on
  -- pgjot_owner), the slots may be in use there, and only this database forgets them.
  shared constant bool := EXISTS (
    SELECT FROM pg_shdepend d
     WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = 'pgjot_owner'::regrole AND d.deptype = 'o'
       AND d.dbid NOT IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())));
  surplus constant name[] := ARRAY(
    SELECT slot FROM pgjot.slot
    EXCEPT SELECT slot FROM pg_temp.wanted_slots());
  gone name;
BEGIN
  PERFORM set_config('role', current_setting('pgjot_install.admin'), true);
  IF NOT shared THEN
    FOR gone IN SELECT rolname FROM pg_roles WHERE rolname = ANY (surplus) LOOP
      -- DROP ROLE does not mind live sessions; we do. The next run drops what this one had to leave.
      EXECUTE format('ALTER ROLE %I NOLOGIN', gone);
      IF NOT EXISTS (SELECT FROM pg_stat_get_activity(NULL) a JOIN pg_roles r ON r.oid = a.usesysid
                      WHERE r.rolname = gone) THEN
        BEGIN
          EXECUTE format('DROP ROLE %I', gone);
          dropped := dropped + 1;
        EXCEPTION WHEN dependent_objects_still_exist THEN
          RAISE WARNING 'pgjot: slot "%" owns objects and stays, without login', gone;
        END;
      ELSE
        RAISE INFO 'slot "%" is in use: it may not log in again, and the next setup drops it', gone;
      END IF;
    END LOOP;
    IF dropped > 0 THEN
      RAISE INFO 'dropped % slots that are no longer wanted', dropped;
    END IF;
  ELSIF surplus <> '{}' THEN
    RAISE INFO 'retired % slots in this database; another one may use them', cardinality(surplus);
  END IF;
  SET LOCAL ROLE pgjot_owner;
  DELETE FROM pgjot.slot s
   WHERE s.slot = ANY (surplus) AND (shared OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = s.slot));
  DELETE FROM pgjot.slot_group g WHERE NOT EXISTS (SELECT FROM pgjot.slot s WHERE s.role = g.role);
END
$surplus$;

-- Trust, but verify: a role of a slot's name may have been there before us.
DO $verify$
DECLARE
  wrong record;
BEGIN
  SELECT r.rolname, 'must not be SUPERUSER, BYPASSRLS, CREATEROLE, CREATEDB or REPLICATION' AS problem
    INTO wrong
    FROM pg_roles r
   WHERE r.rolname IN (SELECT slot FROM pgjot.slot UNION VALUES ('pgjot_control'::name), ('pgjot_owner'))
     AND (r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication)
  UNION ALL
  SELECT r.rolname, format('must not be a member of "%s"', pg_get_userbyid(m.roleid))
    FROM pg_auth_members m
    JOIN pg_roles r ON r.oid = m.member
    LEFT JOIN pgjot.slot s ON s.slot = r.rolname
   WHERE (s.slot IS NOT NULL AND pg_get_userbyid(m.roleid) <> s.role)
      OR r.rolname = 'pgjot_control'
  LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'pgjot: role "%" %', wrong.rolname, wrong.problem USING ERRCODE = '42501';
  END IF;
END
$verify$;

SELECT set_config('role', current_setting('pgjot_install.admin'), true);
REVOKE pgjot_owner FROM CURRENT_USER;
