/**
 * Tokens as each provider documents them, for its preset: those that sign in, and those that must not although the same provider signed them.
 *
 * Names and values are made up; which claims there are, and what tells kinds apart, is from the pages that
 * docs/providers.md names.
 */
import type { ConfigInput } from '../../src/config.ts';
import { NOW } from './forge.ts';

type Claims = Readonly<Record<string, unknown>>;

/** A token of a provider's: who publishes the key that signs it, its header and its claims. */
export interface ProviderToken {
  readonly header?: Claims;
  /** Replaces members of the provider's documented token; undefined leaves one out. */
  readonly claims?: Claims;
  /** Signed with a key of the provider's second place of keys. Default: that of the token's own issuer. */
  readonly signedBy?: 'first' | 'second';
}

/** A refusal: the token, and the DETAIL of it; null where it is refused before its signature has been looked at. */
export type RefusedToken = ProviderToken & { readonly detail: string | null };

/** What a preset makes of a provider, and how that provider's tokens fare. */
export interface ProviderCase {
  readonly settings: Omit<ConfigInput['providers'][string], 'roles'>;
  /** Each issuer with the place of its keys. */
  readonly issuers: Readonly<Record<string, string>>;
  readonly alg: 'RS256' | 'ES256';
  readonly header: Claims;
  readonly claims: Claims;
  readonly accepted: Readonly<Record<string, ProviderToken>>;
  readonly refused: Readonly<Record<string, RefusedToken>>;
}

const now = NOW / 1000;
const times = { iat: now - 10, exp: now + 600 };
const JWT = { typ: 'JWT' };
const aud = 'The claim "aud" is missing or names another audience.';
const claim = (pointer: string) => `The claim "${pointer}" is missing or has another value.`;
const missing = (name: string) => `The claim "${name}" is missing.`;

const TENANT = '8eaef023-2b34-4da1-9baa-8bc8c9d6a490';
const OTHER_TENANT = '72f988bf-86f1-41af-91ab-2d7cd011db47';
const APP = '6e74172b-be56-4843-9ff4-e66a39bb12e3';
const MICROSOFT = 'https://login.microsoftonline.com';
const FIREBASE_KEYS =
  'https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com';
const GOOGLE_KEYS = 'https://www.googleapis.com/oauth2/v3/certs';
const STACK = 'https://api.stack-auth.com/api/v1/projects';
const CLIENT = '1example23456789';

/** By preset. */
export const PROVIDER_CASES: Readonly<Record<string, ProviderCase>> = {
  clerk: {
    settings: { preset: 'clerk', domain: 'clerk.example.com' },
    issuers: { 'https://clerk.example.com': 'https://clerk.example.com/.well-known/jwks.json' },
    alg: 'RS256',
    header: { ...JWT, cat: 'cl_B7d4PD111AAA' },
    claims: {
      iss: 'https://clerk.example.com',
      azp: 'https://app.example.com',
      sub: 'user_123',
      sid: 'sess_123',
      fva: [7, -1],
      jti: '1234567890',
      nbf: now - 20,
      v: 2,
      o: { id: 'org_123', rol: 'admin', slg: 'org-slug' },
      ...times,
    },
    accepted: {
      'a session token': {},
      'one without azp, since the browser sent no Origin': { claims: { azp: undefined } },
      'one of an active session': { claims: { sts: 'active' } },
    },
    refused: {
      'a pending session': { claims: { sts: 'pending' }, detail: claim('/sts') },
      'an ID token for an application that signs in with Clerk': {
        claims: { aud: 'oauth-client', sid: undefined, v: undefined },
        detail: claim('/aud'),
      },
      'an OAuth access token': {
        header: { typ: 'at+jwt' },
        claims: { client_id: 'oauth-client', scope: 'profile', sid: undefined },
        detail: 'The header "typ" is missing or names another kind of token.',
      },
      'the token of another instance': {
        claims: { iss: 'https://other.clerk.accounts.dev' },
        detail: null,
      },
    },
  },

  'stack-auth': {
    settings: { preset: 'stack-auth', project: 'project_abcdef' },
    issuers: { [`${STACK}/project_abcdef`]: `${STACK}/project_abcdef/.well-known/jwks.json` },
    alg: 'ES256',
    header: {},
    claims: {
      iss: `${STACK}/project_abcdef`,
      sub: 'user_123456',
      aud: 'project_abcdef',
      project_id: 'project_abcdef',
      branch_id: 'main',
      refresh_token_id: 'refresh_xyz789',
      role: 'authenticated',
      selected_team_id: null,
      is_anonymous: false,
      is_restricted: false,
      restricted_reason: null,
      ...times,
    },
    accepted: { 'an access token': {} },
    refused: {
      'an anonymous user': {
        claims: {
          iss: 'https://api.stack-auth.com/api/v1/projects-anonymous-users/project_abcdef',
          aud: 'project_abcdef:anon',
        },
        detail: null,
      },
      'a restricted user': {
        claims: { aud: 'project_abcdef:restricted', is_restricted: true },
        detail: aud,
      },
      'a user of another project': {
        claims: { iss: `${STACK}/project_other`, aud: 'project_other' },
        detail: null,
      },
    },
  },

  auth0: {
    settings: {
      preset: 'auth0',
      domain: 'my-domain.eu.auth0.com',
      audience: 'https://db.example.com',
    },
    issuers: {
      'https://my-domain.eu.auth0.com/': 'https://my-domain.eu.auth0.com/.well-known/jwks.json',
    },
    alg: 'RS256',
    header: JWT,
    claims: {
      iss: 'https://my-domain.eu.auth0.com/',
      sub: 'auth0|123456',
      aud: ['https://db.example.com', 'https://my-domain.eu.auth0.com/userinfo'],
      azp: 'my_client_id',
      scope: 'openid profile',
      ...times,
    },
    accepted: {
      'an access token': {},
      'one of the RFC 9068 profile': {
        header: { typ: 'at+jwt' },
        claims: { azp: undefined, client_id: 'my_client_id', jti: '73WakrfVbNJBaAmhQtEeDv' },
      },
    },
    refused: {
      'an ID token, whose audience is the application': {
        claims: { aud: 'my_client_id', scope: undefined, azp: undefined },
        detail: aud,
      },
      'an issuer without its final slash': {
        claims: { iss: 'https://my-domain.eu.auth0.com' },
        detail: null,
      },
    },
  },

  firebase: {
    settings: { preset: 'firebase', project: 'my-project' },
    issuers: { 'https://securetoken.google.com/my-project': FIREBASE_KEYS },
    alg: 'RS256',
    header: JWT,
    claims: {
      iss: 'https://securetoken.google.com/my-project',
      aud: 'my-project',
      auth_time: now - 60,
      user_id: 'Xk893u23H9SI893',
      sub: 'Xk893u23H9SI893',
      firebase: { identities: { email: ['alice@example.com'] }, sign_in_provider: 'password' },
      ...times,
    },
    accepted: { 'an ID token': {} },
    refused: {
      'a token of another project, signed with the same keys': {
        claims: { iss: 'https://securetoken.google.com/other-project', aud: 'other-project' },
        detail: null,
      },
      'one with our issuer and the audience of another project': {
        claims: { aud: 'other-project' },
        detail: aud,
      },
      'a session cookie': {
        claims: { iss: 'https://session.firebase.google.com/my-project' },
        detail: null,
      },
      'a user of a tenant, where none is configured': {
        claims: { firebase: { sign_in_provider: 'password', tenant: 'tenant-a' } },
        detail: claim('/firebase/tenant'),
      },
    },
  },

  stytch: {
    settings: { preset: 'stytch', project: 'project-live-c60c0abe' },
    issuers: {
      'stytch.com/project-live-c60c0abe':
        'https://api.stytch.com/v1/sessions/jwks/project-live-c60c0abe',
    },
    alg: 'RS256',
    header: JWT,
    claims: {
      iss: 'stytch.com/project-live-c60c0abe',
      aud: ['project-live-c60c0abe'],
      sub: 'user-live-fde03dd1',
      nbf: now - 10,
      'https://stytch.com/session': {
        id: 'session-live-e26a0ccb',
        started_at: '2025-12-31T23:00:00Z',
        authentication_factors: [{ type: 'oauth' }],
      },
      ...times,
    },
    accepted: { 'a session JWT': {} },
    refused: {
      'an access token of a machine': {
        claims: {
          sub: 'm2m-client-live-1',
          scope: 'read:users',
          'https://stytch.com/session': undefined,
        },
        detail: missing('https://stytch.com/session'),
      },
      'a session of another project': {
        claims: { iss: 'stytch.com/project-live-other', aud: ['project-live-other'] },
        detail: null,
      },
      'one for another project': { claims: { aud: ['project-live-other'] }, detail: aud },
    },
  },

  keycloak: {
    settings: {
      preset: 'keycloak',
      domain: 'id.example.com',
      realm: 'my-realm',
      authorizedParties: 'my-app',
    },
    issuers: {
      'https://id.example.com/realms/my-realm':
        'https://id.example.com/realms/my-realm/protocol/openid-connect/certs',
    },
    alg: 'RS256',
    header: JWT,
    claims: {
      iss: 'https://id.example.com/realms/my-realm',
      aud: 'account',
      sub: 'fd8fc3d3-0a39-41f7-9468-45926f658e41',
      typ: 'Bearer',
      azp: 'my-app',
      acr: '1',
      realm_access: { roles: ['offline_access', 'analyst'] },
      scope: 'openid profile email',
      ...times,
    },
    accepted: {
      'an access token': {},
      'one without an audience': { claims: { aud: undefined } },
      'one with the header of RFC 9068': { header: { typ: 'at+jwt' } },
    },
    refused: {
      'an ID token': { claims: { typ: 'ID', aud: 'my-app' }, detail: claim('/typ') },
      'a refresh token': { claims: { typ: 'Refresh' }, detail: claim('/typ') },
      'an access token for another client': {
        claims: { azp: 'other-app' },
        detail: 'The claim "azp" names another party.',
      },
      'a token of another realm': {
        claims: { iss: 'https://id.example.com/realms/other' },
        detail: null,
      },
    },
  },

  supabase: {
    settings: { preset: 'supabase', domain: 'abcdefghijklmnop.supabase.co' },
    issuers: {
      'https://abcdefghijklmnop.supabase.co/auth/v1':
        'https://abcdefghijklmnop.supabase.co/auth/v1/.well-known/jwks.json',
    },
    alg: 'ES256',
    header: JWT,
    claims: {
      iss: 'https://abcdefghijklmnop.supabase.co/auth/v1',
      aud: 'authenticated',
      sub: '123e4567-e89b-12d3-a456-426614174000',
      role: 'authenticated',
      aal: 'aal1',
      session_id: '6a7b8c9d-0000-4000-8000-123456789abc',
      email: 'alice@example.com',
      phone: '',
      is_anonymous: false,
      app_metadata: { provider: 'email' },
      ...times,
    },
    accepted: { "a user's token": {} },
    refused: {
      'the role anon': { claims: { aud: 'anon', role: 'anon' }, detail: aud },
      'the role service_role': { claims: { role: 'service_role' }, detail: claim('/role') },
      'a token of another project': {
        claims: { iss: 'https://qrstuvwxyz.supabase.co/auth/v1' },
        detail: null,
      },
    },
  },

  cognito: {
    settings: { preset: 'cognito', userPool: 'eu-west-1_AbCdEfGhI', clients: [CLIENT] },
    issuers: {
      'https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI':
        'https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI/.well-known/jwks.json',
    },
    alg: 'RS256',
    header: {},
    claims: {
      iss: 'https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI',
      sub: 'aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee',
      client_id: CLIENT,
      token_use: 'access',
      scope: 'openid',
      'cognito:groups': ['analysts'],
      username: 'alice',
      jti: 'aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeef',
      auth_time: now - 60,
      ...times,
    },
    accepted: { 'an access token, which has no audience': {} },
    refused: {
      'an ID token': {
        claims: { token_use: 'id', aud: CLIENT, client_id: undefined },
        detail: missing('azp'),
      },
      'an ID token that names the client as well': {
        claims: { token_use: 'id', aud: CLIENT },
        detail: claim('/token_use'),
      },
      'an access token of another client': {
        claims: { client_id: 'other' },
        detail: 'The claim "client_id" names another party.',
      },
      'a token of another user pool': {
        claims: { iss: 'https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_Other' },
        detail: null,
      },
    },
  },

  entra: {
    settings: { preset: 'entra', tenant: TENANT, audience: [APP, `api://${APP}`] },
    issuers: {
      [`${MICROSOFT}/${TENANT}/v2.0`]: `${MICROSOFT}/${TENANT}/discovery/v2.0/keys`,
      [`https://sts.windows.net/${TENANT}/`]: `${MICROSOFT}/${TENANT}/discovery/keys`,
    },
    alg: 'RS256',
    header: JWT,
    claims: {
      iss: `${MICROSOFT}/${TENANT}/v2.0`,
      aud: APP,
      sub: 'HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ',
      tid: TENANT,
      oid: '690222be-ff1a-4d56-abd1-7e4f7d38e474',
      azp: '11111111-2222-3333-4444-555555555555',
      azpacr: '0',
      scp: 'access_as_user',
      ver: '2.0',
      nbf: now - 10,
      ...times,
    },
    accepted: {
      'an access token of version 2': {},
      'one of version 1': {
        claims: {
          iss: `https://sts.windows.net/${TENANT}/`,
          aud: `api://${APP}`,
          appid: '11111111-2222-3333-4444-555555555555',
          azp: undefined,
          ver: '1.0',
        },
      },
    },
    refused: {
      'an ID token, although the application is its own API': {
        claims: { scp: undefined, azp: undefined, nonce: 'abc' },
        detail: missing('scp'),
      },
      'a token of another tenant, signed with the same keys': {
        claims: { iss: `${MICROSOFT}/${OTHER_TENANT}/v2.0`, tid: OTHER_TENANT },
        detail: null,
      },
      'a token for another application': { claims: { aud: 'api://other' }, detail: aud },
      "one of version 2, signed with version 1's keys": { signedBy: 'second', detail: null },
      "one of version 1, signed with version 2's keys": {
        claims: { iss: `https://sts.windows.net/${TENANT}/` },
        signedBy: 'first',
        detail: null,
      },
    },
  },

  google: {
    settings: {
      preset: 'google',
      audience: '1234987819200.apps.googleusercontent.com',
      hostedDomain: 'example.com',
    },
    issuers: { 'https://accounts.google.com': GOOGLE_KEYS, 'accounts.google.com': GOOGLE_KEYS },
    alg: 'RS256',
    header: JWT,
    claims: {
      iss: 'https://accounts.google.com',
      azp: '1234987819200.apps.googleusercontent.com',
      aud: '1234987819200.apps.googleusercontent.com',
      sub: '10769150350006150715113082367',
      hd: 'example.com',
      email: 'alice@example.com',
      email_verified: true,
      ...times,
    },
    accepted: {
      'an ID token': {},
      'one whose issuer has no scheme': { claims: { iss: 'accounts.google.com' } },
    },
    refused: {
      'a token for another application, signed with the same keys': {
        claims: { aud: 'other.apps.googleusercontent.com' },
        detail: aud,
      },
      'an account of another organization': {
        claims: { hd: 'example.net' },
        detail: claim('/hd'),
      },
      'an account of no organization': { claims: { hd: undefined }, detail: claim('/hd') },
    },
  },

  descope: {
    settings: { preset: 'descope', project: 'P2PqjhPcC8Hri2nXUY7f234F' },
    issuers: {
      P2PqjhPcC8Hri2nXUY7f234F:
        'https://api.descope.com/P2PqjhPcC8Hri2nXUY7f234F/.well-known/jwks.json',
      'https://api.descope.com/P2PqjhPcC8Hri2nXUY7f234F':
        'https://api.descope.com/P2PqjhPcC8Hri2nXUY7f234F/.well-known/jwks.json',
    },
    alg: 'RS256',
    header: JWT,
    claims: {
      iss: 'P2PqjhPcC8Hri2nXUY7f234F',
      sub: 'U2PqjhPcC8Hri2nXUY7f234G',
      amr: ['email'],
      drn: 'DS',
      rexp: '2026-01-29T00:00:00Z',
      tenants: { T1: { roles: ['admin'] } },
      ...times,
    },
    accepted: {
      'a session token': {},
      'one of the OIDC-compliant template': {
        claims: {
          iss: 'https://api.descope.com/P2PqjhPcC8Hri2nXUY7f234F',
          aud: ['P2PqjhPcC8Hri2nXUY7f234F'],
        },
      },
    },
    refused: {
      'a refresh token': { claims: { drn: 'DSR' }, detail: claim('/drn') },
      'a token for an application that signs in with Descope': {
        claims: { aud: ['inbound-app'] },
        detail: claim('/aud'),
      },
      'a token of another project': {
        claims: { iss: 'https://api.descope.com/P2other' },
        detail: null,
      },
    },
  },

  propelauth: {
    settings: { preset: 'propelauth', domain: 'auth.example.com' },
    issuers: { 'https://auth.example.com': 'https://auth.example.com/.well-known/jwks.json' },
    alg: 'RS256',
    header: JWT,
    claims: {
      iss: 'https://auth.example.com',
      sub: '31c41c16-c281-44ae-9602-8a047e3bf33d',
      user_id: '31c41c16-c281-44ae-9602-8a047e3bf33d',
      email: 'alice@example.com',
      org_id_to_org_member_info: {
        '1189c444-8a2d-4c41-8b4b-ae43ce79a492': {
          org_id: '1189c444-8a2d-4c41-8b4b-ae43ce79a492',
          org_name: 'Acme',
          user_role: 'Owner',
        },
      },
      ...times,
    },
    accepted: { 'an access token': {} },
    refused: {
      'a token for another audience': { claims: { aud: 'oauth-client' }, detail: claim('/aud') },
      'a token of another customer': {
        claims: { iss: 'https://auth.example.net' },
        detail: null,
      },
    },
  },
};
