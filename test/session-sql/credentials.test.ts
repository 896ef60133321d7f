/** Names, derived passwords and SCRAM verifiers; that PostgreSQL accepts them is in `install.test.ts`. */
import { createHash, createHmac, pbkdf2Sync } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { derivePassword, scramVerifier, slotName } from '../../src/session-sql/credentials.ts';

describe('slotName', () => {
  it('names a slot by its group and number', () => {
    expect(slotName('authenticated', 12)).toBe('pgjot_authenticated_12');
  });

  it('accepts 63 bytes and refuses 64, which PostgreSQL would cut silently', () => {
    expect(Buffer.byteLength(slotName('r'.repeat(55), 1))).toBe(63);

    expect(() => slotName('r'.repeat(56), 1)).toThrow(TypeError);
    expect(() => slotName('r'.repeat(55), 10)).toThrow(TypeError);
  });

  it('counts bytes, not characters', () => {
    expect(() => slotName('ü'.repeat(28), 1)).toThrow(/longer than 63 bytes/);
  });

  it.each([0, -1, 1.5, Number.NaN, Number.MAX_VALUE])('refuses %s as a number', (index) => {
    expect(() => slotName('authenticated', index)).toThrow(TypeError);
  });

  it.each(['', 'a\0b'])('refuses %j as a group', (role) => {
    expect(() => slotName(role, 1)).toThrow(TypeError);
  });
});

describe('derivePassword', () => {
  it('is the HMAC-SHA-256 of the role name in base64url, 43 characters', () => {
    const password = derivePassword('key', 'The quick brown fox jumps over the lazy dog');

    // The vector that Wikipedia and others give, in hexadecimal f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8.
    expect(Buffer.from(password, 'base64url').toString('hex')).toBe(
      'f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8',
    );
    expect(password).toMatch(/^[\w-]{43}$/);
  });

  it('differs by role and by secret', () => {
    const passwords = [
      derivePassword('s', 'pgjot_a_1'),
      derivePassword('s', 'pgjot_a_2'),
      derivePassword('t', 'pgjot_a_1'),
    ];

    expect(new Set(passwords).size).toBe(3);
  });
});

describe('scramVerifier', () => {
  it('holds what RFC 5802 says, and neither the password nor the same salt twice', async () => {
    const verifier = await scramVerifier('pencil');

    const [, salt = '', storedKey, serverKey] =
      /^SCRAM-SHA-256\$4096:([^$]+)\$([^:]+):(.+)$/.exec(verifier) ?? [];
    const salted = pbkdf2Sync('pencil', Buffer.from(salt, 'base64'), 4096, 32, 'sha256');
    const clientKey = createHmac('sha256', salted).update('Client Key').digest();
    expect(storedKey).toBe(createHash('sha256').update(clientKey).digest('base64'));
    expect(serverKey).toBe(createHmac('sha256', salted).update('Server Key').digest('base64'));
    expect(Buffer.from(salt, 'base64')).toHaveLength(16);
    expect(await scramVerifier('pencil')).not.toBe(verifier);
  });
});
