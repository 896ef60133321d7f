/**
 * The policies that `rls.mjs` compares: the same ten rows of 100,000, let through for the same user, each in its own way.
 *
 * Every one has a table of its own, `rows_<id>`, with indexes on both columns, and two functions that count its visible
 * rows over and over: `prepared_<id>`, whose plan is kept, and `parsed_<id>`, which has the text parsed each time.
 */

export const ROWS = 100_000;
/** One user and ten rows in each. */
export const TENANTS = 10_000;

/**
 * @typedef {object} Policy
 * @property {string} id
 * @property {string} title What the policy asks, for the table.
 * @property {string} query Counts the rows that the user sees.
 * @property {string} [using] The policy's expression; none for a table without Row-Level Security.
 * @property {boolean} [slow] It asks once a row where every row is looked at.
 * @property {boolean} [indexless] No index serves it.
 * @property {boolean} [extension] Belongs into the database with pg_session_jwt.
 */

const LOOKED_UP = "auth.session() -> 'lookup' ->> 'tenant_id'";

/** @type {readonly Policy[]} */
export const POLICIES = [
  {
    id: 'none',
    title: 'nothing: no policy, `where tenant_id = …`',
    query: `select count(body) from rows_none where tenant_id = md5('tenant 42')::uuid`,
  },
  of(
    'setting',
    'a setting that any client can change',
    "tenant_id = (select current_setting('app.tenant_id')::uuid)",
  ),
  of('user_id', '`(select auth.user_id())`', 'user_id = (select auth.user_id())'),
  {
    ...of(
      'extension',
      '`(select auth.user_id())`, mode `pg_session_jwt`',
      'user_id = (select auth.user_id())',
    ),
    extension: true,
  },
  of(
    'lookup',
    'the lookup: `(select (auth.session() -> …)::uuid)`',
    `tenant_id = (select (${LOOKED_UP})::uuid)`,
  ),
  of(
    'lookup_outside',
    'the lookup: `((select auth.session()) -> …)::uuid`',
    `tenant_id = (${LOOKED_UP.replace('auth.session()', '(select auth.session())')})::uuid`,
  ),
  of(
    'definer',
    'a SECURITY DEFINER function: `(select my_tenant())`',
    'tenant_id = (select my_tenant())',
  ),
  {
    ...of('definer_bare', 'a SECURITY DEFINER function: `my_tenant()`', 'tenant_id = my_tenant()'),
    slow: true,
  },
  {
    ...of(
      'subquery',
      'the table itself: `in (select tenant_id from members …)`',
      'tenant_id in (select m.tenant_id from members m where m.user_id = (select auth.user_id()))',
    ),
    indexless: true,
  },
  {
    ...of('lookup_bare', 'the lookup without `select`', `tenant_id = (${LOOKED_UP})::uuid`),
    slow: true,
  },
];

/**
 * @param {string} id
 * @param {string} title
 * @param {string} using
 * @returns {Policy}
 */
function of(id, title, using) {
  return { id, title, using, query: `select count(body) from rows_${id}` };
}

/** Who belongs where, and the function that people write today. */
export const TABLES = `
  create table members (user_id text primary key, tenant_id uuid not null, org_role text not null);
  insert into members select 'user-' || n, md5('tenant ' || n)::uuid, 'member' from generate_series(1, ${TENANTS}) n;
  create function my_tenant() returns uuid language sql stable security definer set search_path = pg_catalog, pg_temp
    as $$ select m.tenant_id from public.members m where m.user_id = (select auth.user_id()) $$;
  grant select on members to authenticated;`;

/**
 * The SQL that makes a policy's table and functions.
 *
 * @param {Policy} policy
 */
export function sqlOf({ id, using, query }) {
  const secured =
    using === undefined
      ? ''
      : `create policy visible on rows_${id} to authenticated using (${using});
         alter table rows_${id} enable row level security;
         alter table rows_${id} force row level security;`;
  const loop = (/** @type {string} */ name, /** @type {string} */ statement) => `
    create function ${name}_${id}(times int) returns void language plpgsql as $loop$
    declare visible bigint;
    begin
      for turn in 1 .. times loop ${statement}; end loop;
      if visible <> ${ROWS / TENANTS} then raise '% rows are visible', visible; end if;
    end $loop$;`;
  return `
    create table rows_${id} as
      select n as id, md5('tenant ' || n % ${TENANTS})::uuid as tenant_id, 'user-' || n % ${TENANTS} as user_id, repeat('x', 60) as body
        from generate_series(1, ${ROWS}) n;
    create index on rows_${id} (tenant_id);
    create index on rows_${id} (user_id);
    grant select on rows_${id} to authenticated;
    ${secured}
    ${loop('prepared', query.replace('count(body)', 'count(body) into visible'))}
    ${loop('parsed', `execute $query$${query}$query$ into visible`)}`;
}
