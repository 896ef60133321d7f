-- Lets group roles use the tables of an application's schemas: those that are there, and those to come.
--
-- Runs after auth.sql, in the same transaction and with its settings, where `pgjot setup` was given
-- --grant-schema. It reads two more:
--
--   pgjot_install.grants      [{"schema": "public", "role": "authenticated"}, …]
--   pgjot_install.force_rls   whether to enable and force Row-Level Security on every table of these schemas
--
-- Tables and sequences alone: a view, a materialised view or a foreign table may show what a policy would hide,
-- so each of those is for the administrator to grant. What belongs to an extension is left as it is. (Default
-- privileges know no such difference: a view created later is granted too, and `pgjot doctor` looks at it.)

CREATE OR REPLACE FUNCTION pg_temp.missing(acl aclitem[], role oid, wanted text[]) RETURNS text
LANGUAGE sql STABLE AS $$
  SELECT string_agg(w, ', ') FROM unnest(wanted) w
   WHERE NOT EXISTS (SELECT FROM aclexplode(acl) a WHERE a.grantee = role AND a.privilege_type = w)
$$;

CREATE OR REPLACE FUNCTION pg_temp.schema_members()
RETURNS TABLE (name regclass, kind "char", acl aclitem[], owner oid, secured bool, schema name)
LANGUAGE sql STABLE AS $$
  SELECT c.oid, c.relkind, c.relacl, c.relowner, c.relrowsecurity AND c.relforcerowsecurity, n.nspname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE c.relkind IN ('r', 'p', 'S')
     AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
$$;

-- 1. The schemas themselves: nobody but their owners creates anything there, and clients may look inside ------
DO $schemas$
DECLARE
  admin  constant name := current_setting('pgjot_install.admin');
  wanted record;
  acl    aclitem[];
  owner  oid;
BEGIN
  FOR wanted IN
    SELECT g.*, r.oid AS role_oid
      FROM jsonb_to_recordset(current_setting('pgjot_install.grants')::jsonb) AS g (schema name, role name)
      JOIN pg_roles r ON r.rolname = g.role
  LOOP
    IF wanted.schema ~ '^pg_' OR wanted.schema IN ('information_schema', 'pgjot') THEN
      RAISE EXCEPTION 'pgjot: schema "%" is not for clients', wanted.schema USING ERRCODE = '42939';
    END IF;
    SELECT coalesce(n.nspacl, acldefault('n', n.nspowner)), n.nspowner INTO acl, owner
      FROM pg_namespace n WHERE n.nspname = wanted.schema;
    IF NOT FOUND THEN
      RAISE EXCEPTION 'pgjot: schema "%" does not exist', wanted.schema USING ERRCODE = '3F000';
    END IF;

    IF pg_temp.missing(acl, wanted.role_oid, ARRAY['USAGE']) IS NOT NULL THEN
      EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', wanted.schema, wanted.role);
      RAISE INFO 'granted usage on schema "%" to "%"', wanted.schema, wanted.role;
    END IF;
    -- The default of schema public before PostgreSQL 15. A client could put a function or a table there
    -- that somebody's unqualified name finds before the right one (CVE-2018-1058).
    IF pg_temp.missing(acl, 0, ARRAY['CREATE']) IS NULL THEN
      IF pg_has_role(admin, owner, 'USAGE') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', wanted.schema);
        RAISE INFO 'revoked create on schema "%" from everybody', wanted.schema;
      ELSE
        RAISE WARNING 'pgjot: everybody may create objects in schema "%", and only its owner "%" can revoke that',
          wanted.schema, pg_get_userbyid(owner);
      END IF;
    END IF;
  END LOOP;
END
$schemas$;

-- 2. Row-Level Security, before there is anything to read ----------------------------------------------------
DO $security$
DECLARE
  one record;
BEGIN
  FOR one IN
    SELECT m.name, EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = m.name) AS has_policy
      FROM pg_temp.schema_members() m
     WHERE m.kind IN ('r', 'p') AND NOT m.secured
       AND m.schema IN (SELECT g.schema FROM jsonb_to_recordset(current_setting('pgjot_install.grants')::jsonb) AS g (schema name))
     ORDER BY m.name::text
  LOOP
    IF current_setting('pgjot_install.force_rls')::bool THEN
      -- Of a table that is somebody else's PostgreSQL refuses it, and with it the whole setup.
      EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', one.name);
      RAISE INFO 'forced Row-Level Security on table %', one.name::text ||
        CASE WHEN one.has_policy THEN '' ELSE ', which has no policy yet and shows no rows' END;
    ELSIF NOT (SELECT relrowsecurity FROM pg_class WHERE oid = one.name) THEN
      RAISE WARNING 'pgjot: table % has no Row-Level Security: clients read and change all of its rows', one.name;
    END IF;
  END LOOP;
END
$security$;

-- 3. What is there, and what this administrator will create ----------------------------------------------------
DO $members$
DECLARE
  admin  constant regrole := quote_ident(current_setting('pgjot_install.admin'))::regrole;
  wanted record;
  one    record;
  lacks  text;
  tables int4;
BEGIN
  FOR wanted IN
    SELECT g.*, r.oid AS role_oid, x.*
      FROM jsonb_to_recordset(current_setting('pgjot_install.grants')::jsonb) AS g (schema name, role name)
      JOIN pg_roles r ON r.rolname = g.role
     CROSS JOIN (VALUES ('{r,p}'::"char"[], 'r'::"char", 'TABLE', '{SELECT,INSERT,UPDATE,DELETE}'::text[]),
                        ('{S}', 'S', 'SEQUENCE', '{USAGE}')) AS x (kinds, default_kind, noun, privileges)
  LOOP
    tables := 0;
    FOR one IN
      SELECT m.*, pg_temp.missing(m.acl, wanted.role_oid, wanted.privileges) AS lacks, pg_has_role(admin, m.owner, 'USAGE') AS mine
        FROM pg_temp.schema_members() m
       WHERE m.schema = wanted.schema AND m.kind = ANY (wanted.kinds)
    LOOP
      CONTINUE WHEN one.lacks IS NULL;
      IF one.mine THEN
        EXECUTE format('GRANT %s ON %s %s TO %I', one.lacks, wanted.noun, one.name, wanted.role);
        tables := tables + 1;
      ELSE
        RAISE WARNING 'pgjot: % % belongs to role "%", who alone can grant it to "%"',
          lower(wanted.noun), one.name, pg_get_userbyid(one.owner), wanted.role;
      END IF;
    END LOOP;
    IF tables > 0 THEN
      RAISE INFO 'granted % on % %s of schema "%" to "%"',
        lower(array_to_string(wanted.privileges, ', ')), tables, lower(wanted.noun), wanted.schema, wanted.role;
    END IF;

    lacks := pg_temp.missing(
      (SELECT d.defaclacl FROM pg_default_acl d
        WHERE d.defaclrole = admin AND d.defaclnamespace = quote_ident(wanted.schema)::regnamespace
          AND d.defaclobjtype = wanted.default_kind),
      wanted.role_oid, wanted.privileges);
    IF lacks IS NOT NULL THEN
      EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT %s ON %sS TO %I', wanted.schema, lacks, wanted.noun, wanted.role);
      RAISE INFO 'granted by default % on each % that % creates in schema "%" to "%"',
        lower(lacks), lower(wanted.noun), admin, wanted.schema, wanted.role;
    END IF;
  END LOOP;
END
$members$;

DROP FUNCTION pg_temp.missing(aclitem[], oid, text[]), pg_temp.schema_members();
